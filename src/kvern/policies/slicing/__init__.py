"""How much of a sequence goes into a plan."""
