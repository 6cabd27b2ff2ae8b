"""How fast an engine is on this machine, and what it takes of its memory."""
