"""Attacks on the engine and the store: kills, power cuts, full disks, little memory, odd file systems."""

import os

# Read by libraries as they are imported: none may start a thread, which a fork would lose, or ask for a file that is not here.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
# As the command line sets it before it imports them.
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# The allocator of Arrow, which datasets use.
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
