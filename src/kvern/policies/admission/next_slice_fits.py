"""Enter at once and take pages slice by slice; memory precedence sorts out what does not fit."""

from __future__ import annotations

from kvern.core.views import Admission, SequenceView, View


def admit(sequence: SequenceView, view: View) -> int | None:  # noqa: ARG001 - the shape of the seam
    """Always, holding nothing ahead."""
    return 0


def next_slice_fits() -> Admission:
    return Admission("next_slice_fits", admit)
