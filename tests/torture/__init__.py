"""Attacks on the engine and the store: kills, power cuts, full disks, little memory, odd file systems."""
