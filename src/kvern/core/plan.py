"""Work as values: a plan is a list of slices, a slice a rectangle of tokens x sublayers.

A *unit* is one sublayer: unit ``2 * layer`` is that layer's attention, ``2 * layer + 1`` its feed-forward.
Units are the operator boundaries at which a slice may begin, end, or be interrupted: only the residual rows
live across them.
"""

from __future__ import annotations

import msgspec

from kvern.core.request import Sampling


class Slice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Tokens ``[begin, end)`` of a sequence through units ``[unit_begin, unit_end)``.

    ``unit_begin > 0`` continues an open span. ``emits`` is true when the slice ends at the last known token and
    at the last unit: the executor then samples one token at position ``end``. With lanes of depth 2 the input
    token of ``begin`` may not be sampled yet when the plan is made; the executor reads it from its own buffer.
    """

    sequence: int
    begin: int
    end: int
    unit_begin: int
    unit_end: int
    emits: bool


class SequenceStart(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A sequence enters the device: all its tokens known so far (prompt, then generated ones)."""

    sequence: int
    tokens: tuple[int, ...]
    prompt_tokens: int
    sampling: Sampling


class PageGrant(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Pages appended to a sequence's block table from index ``first``. Shared pages arrive in the same way."""

    sequence: int
    first: int
    pages: tuple[int, ...]


class PageCopy(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Copy a whole page before the step runs (copy-on-write of a shared page that will be appended to)."""

    source: int
    target: int


class Plan(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One step of one lane. Applied in this order: ends, starts, grants, copies, slices.

    A plan may have ends and no slices: the device is to free what left, though nothing is left to compute.
    """

    step: int  # strictly increasing per lane
    lane: int
    slices: tuple[Slice, ...]
    starts: tuple[SequenceStart, ...] = ()
    grants: tuple[PageGrant, ...] = ()
    copies: tuple[PageCopy, ...] = ()
    ends: tuple[int, ...] = ()  # sequences that leave the device; their rows and parked states go
    interruptible: bool = False  # may stop at a unit boundary when interrupted


class OpenSpan(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Tokens ``[begin, end)`` finished down to (not including) ``unit``; the executor parks their hidden rows."""

    sequence: int
    begin: int
    end: int
    unit: int


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Natural-log probabilities at one position, after temperature 1 (the model's own distribution)."""

    token: int
    logprob: float
    rank: int  # 1 is the most likely
    top: tuple[tuple[int, float], ...]  # (token, logprob), most likely first, ties to the lowest id


class Finish(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The device met a stop: ``reason`` is "stop" or "length"; ``stop_token`` is the id that stopped it."""

    sequence: int
    reason: str
    stop_token: int | None = None


class Fault(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One sequence failed (for example: its logits were not finite). Others in the step are unaffected."""

    sequence: int
    message: str


class StepReport(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a step did. ``tokens[i]`` belongs to the plan's i-th emitting slice; -1 marks a void one
    (its sequence had finished one step earlier, was interrupted before the end, or has a fault)."""

    step: int
    lane: int
    tokens: tuple[int, ...]
    finished: tuple[Finish, ...] = ()
    opens: tuple[OpenSpan, ...] = ()  # slices that ended above the last unit, by plan or by interrupt
    untouched: tuple[int, ...] = ()  # sequences whose slices an interrupt left not begun
    faults: tuple[Fault, ...] = ()
    logprobs: tuple[tuple[int, TokenLogprobs], ...] = ()  # (sequence, of the token emitted)
    prompt_logprobs: tuple[tuple[int, int, TokenLogprobs], ...] = ()  # (sequence, position, of the token there)
    seconds: float = 0.0  # device time of the step, as measured (or priced by the simulator)
