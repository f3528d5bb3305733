"""BIPOLAR2: 2 bits of + or - their place and a half float scale for each 64 columns (``kvern.formats.bipolar``)."""

from kvern.formats import bipolar

FORMAT = bipolar.weight_format(2)
