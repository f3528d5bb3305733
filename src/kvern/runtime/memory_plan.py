"""Where the memory of an engine process goes, settled before it starts and kept to: KV pages take what is left.

Default budget: a quarter of the memory available at the start, but no less than what one sequence of full length
takes, as long as that is within three quarters. The pool is made once, of the size planned, and never grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvern.core.errors import PlanError
from kvern.runtime.device import PAGE_TOKENS

MIB = 1 << 20
USUAL_SHARE, LARGEST_SHARE = 0.25, 0.75


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """What the plan is made from, in bytes but for the limits.

    ``load`` is needed on top of the weights only while they are brought in; ``scratch`` (working rows, logits, rope
    tables) and ``host`` (token buffers, block tables, prefix index) while steps run; ``process`` is the interpreter
    with its libraries. ``longest`` is the model's own context.
    """

    weights: int
    load: int
    scratch: int
    host: int
    process: int
    page: int
    max_context: int
    max_running: int
    longest: int
    tails: int = 0  # newest tokens of all sequences, of KV formats that keep them outside the pages


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """``pages`` KV pages of 64 tokens, and the share of every owner. ``total <= budget``, bytes."""

    budget: int
    pages: int
    needs: MemoryNeeds

    @property
    def kv(self) -> int:
        return self.pages * self.needs.page

    @property
    def total(self) -> int:
        """The peak of the process: the larger of what loading and what running takes."""
        needs = self.needs
        return needs.process + needs.weights + max(needs.load, needs.scratch + needs.host + needs.tails + self.kv)

    def table(self) -> str:
        """Lines for people: who has how much, and what it is enough for."""
        needs = self.needs
        rows = (
            ("weights", needs.weights, ""),
            ("KV pages", self.kv, f"{self.pages} pages, {self.pages * PAGE_TOKENS} tokens"),
            *((("KV tails", needs.tails, "newest tokens of each sequence, bf16"),) if needs.tails else ()),
            ("scratch", needs.scratch, "working rows, logits"),
            ("caches", needs.host, "block tables, prefix index"),
            ("process", needs.process, "interpreter, libraries"),
            ("while loading", needs.load, "let go before the first step"),
            ("peak", self.total, f"budget {_size(self.budget)}"),
        )
        width = max(len(label) for label, _, _ in rows)
        return "\n".join(f"{label:<{width}}  {_size(count):>10}  {note}".rstrip() for label, count, note in rows)


def _size(count: int) -> str:
    return f"{count / MIB:,.1f} MiB"


def pages_for(tokens: int) -> int:
    """Pages that one sequence of ``tokens`` tokens holds at most, with one to copy a shared page into."""
    return -(-tokens // PAGE_TOKENS) + 1


def smallest_budget(needs: MemoryNeeds) -> int:
    """Bytes with which one sequence of full length can run."""
    return MemoryPlan(0, pages_for(needs.max_context), needs).total


def default_budget(available: int, needs: MemoryNeeds) -> int:
    """Bytes of a machine with ``available`` free ones that kvern takes when it is not told."""
    return max(int(available * USUAL_SHARE), min(smallest_budget(needs), int(available * LARGEST_SHARE)))


def plan(budget: int, needs: MemoryNeeds, pages: int | None = None) -> MemoryPlan:
    """Give the KV pages what ``budget`` leaves, but no more than all running sequences could fill.

    ``pages`` asks for exactly so many. Raises PlanError with the value that would fit.
    """
    least = pages_for(needs.max_context)
    if pages is not None and pages < least:
        raise PlanError(
            f"{pages} KV pages hold no sequence of {needs.max_context} tokens: give at least {least} pages, or a "
            f"context of at most {max(pages - 1, 0) * PAGE_TOKENS}"
        )
    fixed = needs.process + needs.weights + needs.scratch + needs.host + needs.tails
    room = (budget - fixed) // needs.page if budget > fixed else 0
    wanted = max(least, pages_for(needs.max_context) * needs.max_running) if pages is None else pages
    granted = min(room, wanted) if pages is None else pages
    made = MemoryPlan(budget, max(granted, 0), needs)
    if granted < least or made.total > budget:
        raise PlanError(_refusal(budget, needs, room, wanted if pages is not None else least))
    return made


# The next process may be a little larger than this one before it loads: the value named here must fit then too.
REFUSAL_SLACK = 8 * MIB


def _refusal(budget: int, needs: MemoryNeeds, room: int, pages: int) -> str:
    enough = -(-MemoryPlan(budget, pages, needs).total // MIB) * MIB + REFUSAL_SLACK
    text = f"{_size(budget)} of memory are too little for {needs.max_context} tokens of context; {_size(enough)} "
    text += f"({enough} bytes) are enough"
    context = min((room - 1) * PAGE_TOKENS, needs.max_context)
    if context > 0 and MemoryPlan(budget, 0, needs).total <= budget:
        text += f", or a context of at most {context} tokens"
    return text


def available_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that can be had now: what the kernel says, or what the control group leaves if that is less.

    Raises PlanError where the system does not say.
    """
    found = [value for value in (_meminfo(proc / "meminfo"), _left_in_group(cgroup)) if value is not None]
    if not found:
        raise PlanError("the system does not say how much memory is free: state the memory to use")
    return min(found)


def _meminfo(path: Path) -> int | None:
    if not path.is_file():
        return None
    for line in path.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _left_in_group(group: Path) -> int | None:
    """Of a version 2 or a version 1 control group; None: no limit. Cached file pages can be had back."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        if not ((group / limit).is_file() and (group / used).is_file()):
            continue
        bound = (group / limit).read_text().strip()
        if bound == "max":
            return None
        stat = group / Path(limit).parent / "memory.stat"
        counts = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
        return max(int(bound) - int((group / used).read_text()) + int(counts.get(cache, 0)), 0)
    return None


def resident_bytes(proc: Path = Path("/proc")) -> int:
    """Resident memory of this process, bytes; 0 where the system does not say."""
    return _status(proc, "VmRSS:")


def peak_resident_bytes(proc: Path = Path("/proc")) -> int:
    """The largest it has been, bytes; 0 where the system does not say."""
    return _status(proc, "VmHWM:")


def _status(proc: Path, key: str) -> int:
    path = proc / "self" / "status"
    if not path.is_file():
        return 0
    return next((int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if line.startswith(key)), 0)
