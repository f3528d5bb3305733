"""kvern: a mill that grinds prompts into tokens."""

__version__ = "0.1.0"
