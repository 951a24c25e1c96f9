"""How a change is measured: capture, persona directions, spaces, shifts and their nulls."""
