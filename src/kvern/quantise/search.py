"""Mixed precision: which matrices can go to how few bits within a loss that is given.

The mechanism is that of mixed-precision post-training quantisation with inter-layer-augmented Hessians (spec system
10): a score for each matrix, raised by what it loses together with its neighbours beyond the sum of both; matrices in
order of score; bisection for the longest prefix that can go to each narrower width. Pure functions: what a choice
loses is asked of a callable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

GAMMA = 1.0
TIE = 0.02  # scores within this share of each other count as equal
Loss = Callable[[Sequence[int]], float]  # the width of each matrix (an index of the ladder) -> loss
Pair = tuple[int, int]


def interactions(singles: Sequence[float], doubles: Mapping[Pair, float]) -> dict[Pair, float]:
    """``D_lm``: the loss with both of a pair narrowed minus the sum of the losses with one of them."""
    return {(a, b): both - singles[a] - singles[b] for (a, b), both in doubles.items()}


def augmented(singles: Sequence[float], between: Mapping[Pair, float], gamma: float = GAMMA) -> list[float]:
    """``S_l = Delta_l + gamma * sum over m of max(D_lm, 0)``."""
    scores = list(singles)
    for (a, b), extra in between.items():
        scores[a] += gamma * max(extra, 0.0)
        scores[b] += gamma * max(extra, 0.0)
    return scores


def ordered(scores: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Matrices from the least score up; among scores that are about equal, the one with most cost to save first."""
    by_score = sorted(range(len(scores)), key=lambda i: scores[i])
    found: list[int] = []
    begin = 0
    while begin < len(by_score):
        limit = scores[by_score[begin]] * (1 + TIE) if scores[by_score[begin]] > 0 else scores[by_score[begin]]
        end = begin + 1
        while end < len(by_score) and scores[by_score[end]] <= limit:
            end += 1
        found += sorted(by_score[begin:end], key=lambda i: -costs[i])
        begin = end
    return found


def longest_prefix(count: int, fits: Callable[[int], bool]) -> int:
    """The largest p in 0 .. ``count`` with ``fits(p)``, by bisection; ``fits(0)`` is taken for granted."""
    low, high = 0, count
    if fits(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def assign(order: Sequence[int], widths: int, target: float, loss: Loss) -> list[int]:
    """The width of each matrix (0 the widest, ``widths`` - 1 the narrowest): for each next width, the longest prefix
    of ``order`` (within the previous one's) that keeps the loss at or below ``target``."""
    chosen = [0] * len(order)
    room = len(order)
    for width in range(1, widths):
        found = partial(_with_prefix, tuple(chosen), order, width)
        room = longest_prefix(room, partial(_fits, found, loss, target))
        chosen = found(room)
    return chosen


def _fits(found: Callable[[int], list[int]], loss: Loss, target: float, prefix: int) -> bool:
    return loss(found(prefix)) <= target


def _with_prefix(chosen: Sequence[int], order: Sequence[int], width: int, prefix: int) -> list[int]:
    tried = list(chosen)
    for index in order[:prefix]:
        tried[index] = width
    return tried


def stored_bits(chosen: Sequence[int], elements: Sequence[int], bits: Sequence[float]) -> float:
    """Mean bits per weight when matrix i of ``elements[i]`` weights is stored at ``bits[chosen[i]]``."""
    return sum(bits[width] * count for width, count in zip(chosen, elements, strict=True)) / sum(elements)
