"""All tokens of a prompt through one group of layers per plan (Lee et al., "From Tokens to Layers", 2025).

Between two plans the tokens are an open span whose hidden rows stay parked. The number of groups follows the number
of tokens, so that a plan does about ``work`` tokens' worth of the whole model.
"""

from __future__ import annotations

from kvern.core.views import SequenceView, Slicing, View


def layered(work: int = 512) -> Slicing:
    """``work``: token-equivalents of one plan."""

    def cut(sequence: SequenceView, room: int, view: View) -> tuple[int, int]:
        units, span = view.config.units, sequence.open
        begun = 0 if span is None else span.unit
        beside = max(1, view.config.max_step_tokens - view.config.max_running)  # others' tokens are never held up
        tokens = min(sequence.work, room, beside) if span is None else span.end - span.begin
        if tokens > room:
            return 0, units
        layers = max(1, units // 2)
        groups = min(layers, max(1, -(-tokens // work)))
        unit_end = begun - begun % 2 + 2 * -(-layers // groups)
        return tokens, min(units, unit_end)

    return Slicing("layered", cut)
