"""Bipolar codes of 1 bit in groups of 64 columns, for products by bit planes (``kvern.formats.bipolar``)."""

from kvern.formats import bipolar

FORMAT = bipolar.activation_format("bit planes 1", 1)
