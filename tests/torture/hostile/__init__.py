"""Hostile files and configurations, at every door where something of others comes in."""
