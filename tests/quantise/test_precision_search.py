"""The search for mixed precision as pure functions: scores, order, bisection, widths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvern.quantise.search import assign, augmented, interactions, longest_prefix, ordered, stored_bits


def test_interactions_are_what_a_pair_loses_beyond_its_parts() -> None:
    found = interactions([1.0, 2.0, 4.0], {(0, 1): 5.0, (1, 2): 5.5})
    assert found == {(0, 1): 2.0, (1, 2): -0.5}
    assert augmented([1.0, 2.0, 4.0], found, gamma=0.5) == [2.0, 3.0, 4.0]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40))
def test_order_is_a_permutation_from_the_least_score_up(scores: list[float]) -> None:
    order = ordered(scores, [1.0] * len(scores))
    assert sorted(order) == list(range(len(scores)))
    assert all(scores[a] <= scores[b] * 1.02 for a, b in itertools.pairwise(order))


def test_equal_scores_go_to_the_matrix_with_most_to_save() -> None:
    assert ordered([1.0, 1.005, 0.99, 5.0], [1, 9, 4, 100]) == [1, 2, 0, 3]


@given(st.integers(0, 300), st.data())
def test_bisection_finds_the_longest_prefix_with_few_questions(count: int, data: st.DataObject) -> None:
    limit = data.draw(st.integers(0, count))
    asked: list[int] = []

    def fits(prefix: int) -> bool:
        asked.append(prefix)
        return prefix <= limit

    assert longest_prefix(count, fits) == limit
    assert len(asked) <= 2 + count.bit_length()


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=30), st.floats(0, 20))
def test_widths_stay_within_the_target_and_narrow_from_the_front_of_the_order(
    losses: list[float], target: float
) -> None:
    def loss(chosen: Sequence[int]) -> float:
        return sum(amount * (0, 0.1, 1)[width] for amount, width in zip(losses, chosen, strict=True))

    order = ordered(losses, [1.0] * len(losses))
    chosen = assign(order, 3, target, loss)
    assert loss(chosen) <= target
    widths = [chosen[index] for index in order]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(("chosen", "bits"), [([0, 0], 16.0), ([0, 2], 10.0), ([2, 2], 4.0)])
def test_stored_bits_are_weighted_by_size(chosen: list[int], bits: float) -> None:
    assert stored_bits(chosen, [100, 100], (16.0, 8.0, 4.0)) == bits
