"""Readers of model files: bounded, checked, executing nothing."""
