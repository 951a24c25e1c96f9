"""Run stages, whatever they compute: each once, stored whole, on one process or many."""
