"""Bipolar codes of 3 bits in groups of 64 columns, for products by bit planes (``kvern.formats.bipolar``)."""

from kvern.formats import bipolar

FORMAT = bipolar.activation_format("bit planes 3", 3)
