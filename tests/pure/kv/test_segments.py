"""A view is sealed ranges plus one open tail; its pages are the block table."""

from __future__ import annotations

from kvern.kv.segments import KvView, Segment, SegmentRange


def test_growing_and_sealing_keep_the_block_table() -> None:
    view = KvView(4)
    view.begin_with(b"root", (7, 8))
    assert (view.shared, view.capacity, view.sealed_pages, view.seal_at) == (8, 8, 2, 12)
    view.grow([3, 4, 5])
    assert view.pages() == [7, 8, 3, 4, 5]
    assert view.seal(b"root", 2) == (3, 4)
    assert view.pages() == [7, 8, 3, 4, 5]
    assert view.ranges[1].segment == Segment(b"root", 2, (3, 4))
    assert (view.tail, view.sealed_pages, view.count, view.seal_at) == ([5], 4, 5, 20)


def test_a_cleared_view_keeps_only_its_digests() -> None:
    view = KvView(4)
    view.begin_with(b"root", (7,))
    view.grow([1])
    view.digests.append(b"digest")
    view.clear()
    assert (view.pages(), view.capacity, view.shared, view.seal_at) == ([], 0, 0, 4)
    assert view.digests == [b"digest"]


def test_beginning_with_nothing_is_an_empty_view() -> None:
    view = KvView(4)
    view.begin_with(b"root", ())
    assert view.ranges == []


def test_a_range_may_be_a_part_of_a_segment() -> None:
    assert SegmentRange(Segment(b"root", 3, (5, 6, 7)), 1, 3).pages == (6, 7)
