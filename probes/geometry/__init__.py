"""Where a change lies: persona directions, the space they span, and what chance gives."""
