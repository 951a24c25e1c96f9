"""How much of a trait a text shows: contrast scores, choices, and judges' grades."""
