"""The stages that a study needs."""
