"""Sarathi-Serve's stall-free batching: one-token work first, then prompts in progress, then new ones.

A budget of tokens per step bounds how long the first group waits for the others (Agrawal et al., OSDI 2024). An open
span goes before all: it cannot shrink to the room that is left. The first of the queue that cannot enter ends the
plan: nobody passes it.
"""

from __future__ import annotations

from kvern.core.views import Builder, Composing, SequenceView


def _group(sequence: SequenceView) -> int:
    if sequence.open is not None:
        return 0
    return 1 if sequence.work == 1 else 2


def stall_free(budget: int | None = None) -> Composing:
    """``budget``: tokens of one step; by default what a plan can hold."""

    def compose(builder: Builder) -> None:
        left = builder.room if budget is None else min(budget, builder.room)
        floor = builder.room - left  # what stays unused of the room
        for sequence in sorted(builder.running(), key=_group):
            if builder.room > floor:
                builder.offer(sequence, builder.room - floor)
        if builder.room <= floor or len(builder.view.running()) >= builder.view.config.max_running:
            return
        for sequence in builder.waiting():
            if builder.room <= floor or builder.offer(sequence, builder.room - floor) is not None:
                return

    return Composing("stall_free", compose, steady=True)
