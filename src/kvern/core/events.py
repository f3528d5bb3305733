"""All that can happen to the control core, and all it can ask for. Both are logged; events alone are replayed."""

from __future__ import annotations

import msgspec

from kvern.core.plan import Plan, StepReport, TokenLogprobs
from kvern.core.request import Request


class Arrived(msgspec.Struct, frozen=True, array_like=True, tag="arrived"):
    request: Request


class Aborted(msgspec.Struct, frozen=True, array_like=True, tag="aborted"):
    """The client left, or the server found a stop string: free everything within a step."""

    request: int
    cause: str


class Stepped(msgspec.Struct, frozen=True, array_like=True, tag="stepped"):
    report: StepReport


class LaneFailed(msgspec.Struct, frozen=True, array_like=True, tag="lane_failed"):
    """A plan could not be executed; nothing of it counts, and cursors stay where they were.

    Nor do plans count that were queued behind it, however they are reported. The core does not know which ends,
    starts and grants took effect: it sends them again, so ending an unknown sequence and starting a known one must
    be harmless. Open spans of the plan's sequences are given up.
    """

    lane: int
    step: int
    message: str


class Woken(msgspec.Struct, frozen=True, array_like=True, tag="woken"):
    """A timer set by ``WakeAt`` went off."""

    tag_name: str


class Reprioritise(msgspec.Struct, frozen=True, array_like=True, tag="reprioritise"):
    """The only event that may change memory precedence; rate-limited by the ledger."""

    request: int
    rank: float


class Measured(msgspec.Struct, frozen=True, array_like=True, tag="measured"):
    """A measured value (cost, resident bytes, link speed) that policies may read; named with its unit."""

    name: str
    value: float


class WeightsChanged(msgspec.Struct, frozen=True, array_like=True, tag="weights_changed"):
    """Later steps run on other weights (more or fewer layers of a bitstack model): KV made before is not shared with
    requests that come after. ``revision`` counts the changes."""

    revision: int


Event = Arrived | Aborted | Stepped | LaneFailed | Woken | Reprioritise | Measured | WeightsChanged


class Execute(msgspec.Struct, frozen=True, array_like=True, tag="execute"):
    plan: Plan


class Interrupt(msgspec.Struct, frozen=True, array_like=True, tag="interrupt"):
    """Stop ``step`` at its next unit boundary. A stale step id is a no-op."""

    lane: int
    step: int


class Delta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one request gained in one step. The last delta of a request has ``finish``."""

    request: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()  # sent once, with the first delta; None at position 0
    finish: str | None = None  # "stop" | "length" | "abort" | "error"
    stop_token: int | None = None
    cached_tokens: int = 0  # prompt tokens found in the prefix cache (first delta)
    error: str | None = None


class Emit(msgspec.Struct, frozen=True, array_like=True, tag="emit"):
    """All deltas of one step travel as one message."""

    deltas: tuple[Delta, ...]


class WakeAt(msgspec.Struct, frozen=True, array_like=True, tag="wake_at"):
    at_s: float
    tag_name: str


class Refuse(msgspec.Struct, frozen=True, array_like=True, tag="refuse"):
    """The request can never run here. ``limit`` is the value that would have been accepted."""

    request: int
    field: str
    message: str
    limit: float | None = None


Command = Execute | Interrupt | Emit | WakeAt | Refuse
