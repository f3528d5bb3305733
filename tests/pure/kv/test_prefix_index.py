"""A page is found by all its KV depends on, and by nothing else."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvern.kv.prefix_index import PrefixIndex
from kvern.kv.segments import KvView

SIZE = 4


def index(key: bytes = b"key", domain: bytes = b"v1/bf16") -> PrefixIndex:
    return PrefixIndex(SIZE, key=key, domain=domain)


def store(it: PrefixIndex, tokens: list[int], salt: bytes = b"", page: int = 0) -> None:
    """Seal all full pages of ``tokens`` as pages ``page, page + 1, ...``."""
    view = KvView(SIZE)
    it.extend(view, salt, tokens, len(tokens) // SIZE)
    for number, digest in enumerate(view.digests):
        it.insert(digest, tokens, number, page + number)


def find(it: PrefixIndex, tokens: list[int], salt: bytes = b"") -> tuple[int, ...]:
    return it.match(KvView(SIZE), salt, tokens)


def test_whole_pages_are_found_and_the_last_token_is_left() -> None:
    it = index()
    store(it, list(range(12)))
    assert find(it, list(range(12))) == (0, 1)
    assert find(it, list(range(13))) == (0, 1, 2)
    assert find(it, list(range(7))) == (0,)
    assert find(it, [0]) == ()
    assert find(it, [*range(4), 99, *range(5, 20)]) == (0,)


def test_the_same_page_after_another_prefix_is_another_page() -> None:
    it = index()
    store(it, [1, 1, 1, 1, 5, 6, 7, 8])
    assert find(it, [2, 2, 2, 2, 5, 6, 7, 8, 9]) == ()


def test_salts_domains_and_keys_are_apart() -> None:
    it = index()
    store(it, list(range(9)), b"a")
    assert find(it, list(range(9)), b"a") == (0, 1)
    assert find(it, list(range(9)), b"b") == ()
    assert find(it, list(range(9))) == ()
    assert index(domain=b"v1").root(b"/bf16") != index(domain=b"v1/bf16").root(b"")
    assert index(key=b"other").root(b"") != it.root(b"")


def test_a_collision_of_digests_is_no_hit() -> None:
    it = index()
    tokens = list(range(9))
    store(it, tokens)
    view = KvView(SIZE)
    it.extend(view, b"", tokens, 2)
    assert it.match(view, b"", [9, 9, 9, 9, 9]) == ()  # the digests of other tokens


def test_the_first_of_equal_pages_stays() -> None:
    it = index()
    store(it, list(range(8)), page=0)
    store(it, list(range(8)), page=5)
    assert find(it, list(range(9))) == (0, 1)
    it.forget(7)
    assert len(it) == 2
    it.forget(0)
    assert find(it, list(range(9))) == ()
    store(it, list(range(4)), page=3)
    assert find(it, list(range(9))) == (3, 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=20), max_size=8),
    st.lists(st.integers(0, 1), max_size=20),
)
def test_a_hit_is_exactly_the_longest_stored_prefix(stored: list[list[int]], wanted: list[int]) -> None:
    it = index()
    for number, tokens in enumerate(stored):
        store(it, tokens, page=number * 10)
    whole = {tuple(tokens[: end * SIZE]) for tokens in stored for end in range(1, len(tokens) // SIZE + 1)}
    most = max(
        (n for n in range(max(0, len(wanted) - 1) // SIZE + 1) if n == 0 or tuple(wanted[: n * SIZE]) in whole),
        default=0,
    )
    assert len(find(it, wanted)) == most
