"""Commands for traits: show, import, export, synthesise."""
