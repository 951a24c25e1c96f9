"""The stages: one file per kind, with the files that it writes and the functions that load them."""
