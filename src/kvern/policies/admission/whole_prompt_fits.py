"""Enter when the whole prompt fits now, and leave those who run some room to grow.

The memory guard of DeepSpeed-FastGen and Sarathi-Serve. The reserve keeps a sequence from entering only to lose its
memory, or to take it from others, a few steps later; one that lost it before needs twice the reserve to come back.
"""

from __future__ import annotations

from kvern.core.views import Admission, SequenceView, View


def whole_prompt_fits(pages_ahead: int = 1) -> Admission:
    """``pages_ahead``: pages left free for each running sequence."""

    def admit(sequence: SequenceView, view: View) -> int | None:
        reserve = pages_ahead * len(view.running())
        if sequence.losses:
            reserve *= 2
        fits = view.pages_short(sequence, sequence.length) + reserve <= view.pages_available
        return sequence.length if fits else None

    return Admission("whole_prompt_fits", admit)
