"""The offline quantiser: calibration, rounding, search. ``kvern.assembly`` says what is made of which model."""
