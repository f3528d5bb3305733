"""Who may enter now."""
