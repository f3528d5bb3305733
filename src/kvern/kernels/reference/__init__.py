"""The NumPy back end: slow, obvious, and the oracle for every kernel, format and model."""
