"""A trait that a chat server writes, text by text: `wellworn traits synthesize`.

`run.py` is the command: it asks a `draft.py` for the trait and writes its folder, of which `folder.py` knows how it came about. A draft
goes through the parts of a trait, has each text of them written by `writer.py` in the words of `prompts.py`, and says which will do.
"""
