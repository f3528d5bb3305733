"""Pages are conserved exactly, shared only while they hold something, and reused from the oldest cached one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvern.core.errors import InvariantBroken
from kvern.kv.pool import PagePool


def pool(pages: int = 6) -> tuple[PagePool, list[int]]:
    forgotten: list[int] = []
    return PagePool(pages, forgotten.append), forgotten


def test_reserve_is_all_or_nothing() -> None:
    it, _ = pool()
    assert it.reserve(7) is None
    assert it.available == 6
    held = it.reserve(4)
    assert held is not None
    assert (it.available, it.used, len(set(held))) == (2, 4, 4)
    assert it.reserve(3) is None
    assert it.reserve(0) == []
    it.audit([held])


def test_kept_pages_are_cached_and_the_oldest_goes_first() -> None:
    it, forgotten = pool()
    first = it.reserve(3)
    second = it.reserve(3)
    for page in [*first, *second]:
        it.keep(page)
    it.release(first)
    it.release(second)
    assert (it.available, it.cached, it.used) == (6, 6, 0)
    taken = it.reserve(2)
    assert forgotten == taken == [first[2], first[1]]  # a chain loses its end before its beginning


def test_a_shared_page_stays_until_its_last_reader_leaves() -> None:
    it, forgotten = pool(2)
    held = it.reserve(2)
    it.keep(held[0])
    it.share([held[0]])
    it.release(held)
    assert (it.references(held[0]), it.available) == (1, 1)
    assert it.reserve(2) is None
    it.release([held[0]])
    assert it.is_cached(held[0])
    it.share([held[0]])
    assert not it.is_cached(held[0])
    assert forgotten == []


def test_a_dropped_page_is_not_cached() -> None:
    it, _ = pool(2)
    held = it.reserve(2)
    it.keep(held[0])
    it.drop(held[0])
    it.release(held)
    assert it.cached == 0
    again = it.reserve(1)
    it.keep(again[0])
    it.release(again)
    it.drop(again[0])
    assert (it.cached, it.available) == (0, 2)


def test_what_must_never_happen_is_refused() -> None:
    it, _ = pool()
    held = it.reserve(1)
    it.release(held)
    with pytest.raises(InvariantBroken, match="more often"):
        it.release(held)
    with pytest.raises(InvariantBroken, match="cannot be shared"):
        it.share([5])
    with pytest.raises(InvariantBroken, match="cannot be sealed"):
        it.keep(5)
    with pytest.raises(InvariantBroken, match="cannot be pinned"):
        it.pin(5, 1.0)


def test_pins_keep_pages_until_they_expire_or_the_latest_is_given_up() -> None:
    it, forgotten = pool(3)
    held = it.reserve(3)
    for page in held:
        it.keep(page)
    it.pin(held[2], 5.0)
    it.pin(held[1], 9.0)
    it.pin(held[1], 8.0)
    it.release(held)
    assert it.available == 1
    assert it.reserve(2) is None
    assert it.reserve(1) == [held[0]]
    it.unpin_expired(5.0)
    assert it.available == 1
    assert it.unpin_latest()
    assert it.available == 2
    assert not it.unpin_latest()
    assert forgotten == [held[0]]
    it.audit([[held[0]]])


def test_a_pinned_page_may_be_shared_and_dropped() -> None:
    it, _ = pool(2)
    held = it.reserve(1)
    it.keep(held[0])
    it.pin(held[0], 1.0)
    it.release(held)
    it.share(held)
    assert it.available == 1
    it.release(held)
    it.drop(held[0])
    assert it.available == 2
    it.audit([])


def test_the_audit_finds_leaks_double_frees_and_strangers() -> None:
    it, _ = pool()
    held = it.reserve(2)
    with pytest.raises(InvariantBroken, match="references"):
        it.audit([])
    it._free.append(held[0])
    with pytest.raises(InvariantBroken, match="twice, or while it is held"):
        it.audit([held])
    it._free.pop()
    lost = it._free.pop()
    with pytest.raises(InvariantBroken, match="lost"):
        it.audit([held])
    it._cached[lost] = None
    with pytest.raises(InvariantBroken, match="not in the index"):
        it.audit([held])
    it._indexed.add(lost)
    it.audit([held])
    it._pinned_cached = 1
    with pytest.raises(InvariantBroken, match="miscounted"):
        it.audit([held])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["reserve", "share", "release", "keep", "drop", "pin", "expire"]), st.integers(0, 7)
        )
    )
)
def test_conservation_under_any_use(actions: list[tuple[str, int]]) -> None:
    it = PagePool(7, lambda page: None)
    holders: list[list[int]] = []
    for now, (action, number) in enumerate(actions):
        chosen = holders[number % len(holders)] if holders else []
        if action == "reserve":
            taken = it.reserve(number)
            assert (taken is None) == (number > 7 - it.used - it._pinned_cached if taken is None else False)
            holders += [taken] if taken else []
        elif action == "share" and chosen:
            it.share(chosen)
            holders.append(list(chosen))
        elif action == "release" and chosen:
            holders.remove(chosen)
            it.release(chosen)
        elif action == "keep" and chosen:
            it.keep(chosen[number % len(chosen)])
        elif action == "drop":
            it.drop(number % 7)
        elif action == "pin" and number in it._indexed:
            it.pin(number, now + number)
        elif action == "expire":
            it.unpin_expired(float(now))
        it.audit(holders)
