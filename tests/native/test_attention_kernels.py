"""The attention kernels alone, on the instruction sets of this machine, against a float64 softmax."""

from __future__ import annotations

import numpy as np
import pytest
from attention_cases import Case, check, run
from hypothesis import given, settings
from hypothesis import strategies as st

from kvern import _native

ISAS = _native.available_isas()
SHAPES = [(9, 3, 64), (4, 1, 256), (2, 2, 20), (14, 2, 16), (3, 1, 12), (5, 1, 44), (8, 8, 128)]


@pytest.mark.parametrize("kv_format", ["bf16", "kv8", "bf16/kv8", "kv8/bf16"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
def test_close_to_float64(heads, kv_heads, dim, kv_format):
    case = Case(kv_format, heads, kv_heads, dim, tokens=150, rows=9)
    for isa in ISAS:
        check(_native, case, isa)


@pytest.mark.parametrize("kv_format", ["bf16", "kv8"])
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 1100), st.integers(1, 24), st.sampled_from([0, 1, 2, 63, 64, 65, 200, 600]), st.integers(1, 24))
def test_any_length_window_and_rows_at_once(kv_format, tokens, rows, window, together):
    case = Case(kv_format, 6, 2, 16, tokens, min(rows, tokens), window, seed=tokens)
    for isa in ISAS:
        check(_native, case, isa, together=together)


@pytest.mark.parametrize("kv_format", ["bf16", "kv8", "kv8/bf16"])
@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_rows_or_splits(kv_format, isa):
    for window in (0, 100):
        case = Case(kv_format, 3, 1, 32, tokens=560, rows=40, window=window)
        wanted = run(_native, case, isa, together=1)
        for together in (5, 32):
            assert run(_native, case, isa, together=together).tobytes() == wanted.tobytes()
        assert run(_native, case, isa, together=7, split=True).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kv_format", ["bf16", "kv8"])
@pytest.mark.parametrize("isa", ISAS)
def test_what_lies_behind_the_last_token_does_not_matter(kv_format, isa):
    """Pages are used again: the tokens behind the last one of a sequence may be another's, NaN included."""
    case = Case(kv_format, 6, 2, 36, tokens=77, rows=1)
    store, q = case.store(_native, isa), case.queries()
    wanted = store.attend(q, 76, 0.2, isa=isa)
    poison = np.full((40, 2, 36), np.nan, np.float32)
    store.append(poison, poison, isa)
    assert store.attend(q, 76, 0.2, isa=isa).tobytes() == wanted.tobytes()
    assert np.isnan(store.attend(q, 80, 0.2, isa=isa)).all()


@pytest.mark.parametrize("kv_format", ["bf16", "kv8"])
@pytest.mark.parametrize("isa", ISAS)
def test_queries_that_are_not_finite_give_nan(kv_format, isa):
    case = Case(kv_format, 2, 1, 16, tokens=70, rows=2)
    q = case.queries()
    q[0, 1, 3] = np.nan
    q[1, 0, 2] = np.inf
    out = case.store(_native, isa).attend(q, 68, 0.25, together=2, isa=isa)
    assert np.isnan(out[0, 1]).all()
    assert np.isnan(out[1, 0]).all()
    assert np.isfinite(out[0, 0]).all()
    assert np.isfinite(out[1, 1]).all()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="kv format 'kv7'"):
        _native.KvStore("kv7", 1, 16, 64)
    with pytest.raises(ValueError, match="multiple of 4"):
        _native.KvStore("bf16", 1, 18, 64)
    store = Case("bf16", 2, 1, 16, tokens=70, rows=1).store(_native, "")
    rows = np.zeros((1, 2, 16), np.float32)
    with pytest.raises(ValueError, match="room"):
        store.append(np.zeros((59, 1, 16), np.float32), np.zeros((59, 1, 16), np.float32))
    for arguments, message in [
        ({"first": 70}, "positions that were appended"),
        ({"first": -1}, "positions that were appended"),
        ({"first": 0, "chunk": 100}, "multiple of 64"),
        ({"first": 0, "together": 97}, "out of range"),
    ]:
        with pytest.raises(ValueError, match=message):
            store.attend(rows, scale=1.0, **arguments)
    with pytest.raises(ValueError, match="multiple of kv_heads"):
        store.attend(np.zeros((1, 2, 20), np.float32), 0, 1.0)
