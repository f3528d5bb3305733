"""The 4-bit KV kernels alone: against float64 over what the NumPy reference keeps, with equal bits everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from attention_cases import Case, run
from hypothesis import given, settings
from hypothesis import strategies as st

from kvern import _native
from kvern.formats import kv as kv_formats
from kvern.formats.kv import bf16

ISAS = _native.available_isas()
FORMATS = ("kv4", "kv4-hadamard", "kv4-token", "kv8/kv4-token", "kv4/kv8", "kv4/bf16", "bf16/kv4-token")
SHAPES = [(9, 3, 64), (3, 1, 80), (4, 2, 128), (4, 1, 256), (2, 2, 20), (3, 1, 12)]


def kept(case: Case, row_page: int) -> list[np.ndarray]:
    """Keys and values as a row in page ``row_page`` sees them, float64 [tokens, kv_heads, dim]."""
    found, format_ = [], kv_formats.get(case.kv_format)
    sealed = 64 * max(0, row_page - 1)
    for exact, coding in zip(case.keys_and_values(), (format_.keys, format_.values), strict=True):
        if not format_.tail:
            found.append(coding.stored(exact).astype(np.float64))
            continue
        recent = bf16.stored(exact)
        pages = recent[:sealed].reshape(-1, 64, *recent.shape[1:])
        coded = coding.stored(pages).reshape(-1, *recent.shape[1:])
        found.append(np.concatenate([coded, recent[sealed:]]).astype(np.float64))
    return found


def exact(case: Case) -> np.ndarray:
    q, group = case.queries().astype(np.float64), case.heads // case.kv_heads
    out = np.empty_like(q)
    for row, position in enumerate(range(case.first, case.tokens)):
        keys, values = kept(case, position // 64)
        begin = max(0, position + 1 - case.window) if case.window else 0
        for head in range(case.heads):
            seen = slice(begin, position + 1)
            scores = keys[seen, head // group] @ q[row, head] * case.scale
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ values[seen, head // group] / weights.sum()
    return out


def check(case: Case) -> None:
    """Queries and weights become 15-bit integers: within 2^-15 of the largest, some hundred times below the codes.

    bf16 operands of AMX tiles round to 2^-9.
    """
    wanted = exact(case)
    for isa in ISAS:
        rounded = isa == "amx" and ("bf16" in case.kv_format or "kv4/" in case.kv_format + "/")
        found = run(_native, case, isa, together=min(8, 96 // (case.heads // case.kv_heads)))
        assert np.abs(found - wanted).max() < (0.05 if rounded else 2e-3), isa


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
def test_close_to_float64(heads: int, kv_heads: int, dim: int, kv_format: str) -> None:
    check(Case(kv_format, heads, kv_heads, dim, tokens=210, rows=5))


@pytest.mark.parametrize("kv_format", FORMATS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(1, 130), st.integers(1, 9), st.sampled_from([0, 1, 63, 65, 100]), st.sampled_from([64, 80, 128]))
def test_any_length_and_window(kv_format: str, tokens: int, rows: int, window: int, dim: int) -> None:
    check(Case(kv_format, 3, 1, dim, tokens, min(rows, tokens), window, seed=tokens))


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_rows_or_splits(kv_format: str, isa: str) -> None:
    for window in (0, 100):
        case = Case(kv_format, 9, 3, 64, tokens=600, rows=70, window=window)
        wanted = run(_native, case, isa, together=1)
        for together, split in ((2, False), (5, False), (32, False), (7, True)):
            assert run(_native, case, isa, together, split).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kv_format", FORMATS)
def test_all_instruction_sets_have_the_portable_bits(kv_format: str) -> None:
    for heads, kv_heads, dim in SHAPES:
        case = Case(kv_format, heads, kv_heads, dim, tokens=260, rows=9)
        wanted = run(_native, case, "portable", together=4)
        for isa in ISAS:
            if isa != "amx" or kv_format in ("kv4-hadamard", "kv4-token", "kv8/kv4-token"):
                assert run(_native, case, isa, together=4).tobytes() == wanted.tobytes(), isa


@pytest.mark.parametrize("kv_format", ["kv4-hadamard", "kv4-token"])
@pytest.mark.parametrize("isa", ISAS)
def test_what_lies_behind_the_last_token_does_not_matter(kv_format: str, isa: str) -> None:
    case = Case(kv_format, 6, 2, 36, tokens=77, rows=1)
    store, q = case.store(_native, isa), case.queries()
    wanted = store.attend(q, 76, 0.2, isa=isa)
    poison = np.full((40, 2, 36), np.nan, np.float32)
    store.append(poison, poison, isa)
    assert store.attend(q, 76, 0.2, isa=isa).tobytes() == wanted.tobytes()
    assert np.isnan(store.attend(q, 80, 0.2, isa=isa)).all()
