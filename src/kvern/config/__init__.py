"""One typed tree of settings. Flags and environment variables are views of it, generated from its fields."""
