"""What goes into a plan."""
