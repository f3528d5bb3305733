"""Policies: one file each, named in ``table``, imported on use. Their shapes are in ``kvern.core.views``."""
