"""Number formats, one file each, as NumPy references: what every kernel is tested against."""
