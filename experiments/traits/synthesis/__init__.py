"""A trait that a chat server writes, text by text: `wellworn traits synthesize`.

`run.py` is the command: it gets the trait from a draft (`draft.py`) and writes its folder; `folder.py` records the folder's origin. A
draft goes through the parts of a trait, has each text written by `writer.py` with the requests of `prompts.py`, and checks it.
"""
