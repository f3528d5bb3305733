"""The native sampler against its NumPy twin, against exact probabilities, and on rows it must refuse."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from kvern import _native
from kvern.kernels.cpu.sampler import CpuSampler
from kvern.kernels.reference.sample import ReferenceSampler, philox

SAMPLER = CpuSampler(_native.Pool(2))
REFERENCE = ReferenceSampler()
LISTS = ("history", "bias", "allowed", "banned")


def parameters(rows: int, **changes: object) -> SimpleNamespace:
    """Neutral parameters (temperature 1, nothing cut); ``changes`` are scalars, arrays or, for ids, lists per row."""
    defaults = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
                "frequency_penalty": 0.0}  # fmt: skip
    values: dict[str, np.ndarray] = {}
    for name, value in defaults.items():
        values[name] = np.broadcast_to(np.asarray(changes.get(name, value), np.float32), (rows,)).copy()
    for name in ("top_k", "position", "prompt_tokens"):
        values[name] = np.broadcast_to(np.asarray(changes.get(name, 0), np.int32), (rows,)).copy()
    values["seed"] = np.broadcast_to(np.asarray(changes.get("seed", 0), np.uint64), (rows,)).copy()
    values["choice"] = np.broadcast_to(np.asarray(changes.get("choice", 0), np.uint32), (rows,)).copy()
    for name in LISTS:
        lists = changes.get(name, [[]] * rows)
        values[f"{name}_ids"] = np.array([i for ids in lists for i in ids], np.int32)
        values[f"{name}_begin"] = np.cumsum([0, *(len(ids) for ids in lists)]).astype(np.int32)
    biases = changes.get("bias_values", [[0.0] * len(ids) for ids in changes.get("bias", [[]] * rows)])
    values["bias_values"] = np.array([v for row in biases for v in row], np.float32)
    return SimpleNamespace(**values)


def random_case(seed: int) -> tuple[np.ndarray, SimpleNamespace]:
    draw = np.random.default_rng(seed)
    rows, vocab = int(draw.integers(1, 6)), int(draw.choice([5, 33, 1000, 2500]))
    logits = (draw.standard_normal((rows, vocab)) * draw.choice([0.1, 1.0, 5.0])).astype(np.float32)
    if seed % 3 == 0:
        logits = np.round(logits)  # many ties

    def ids(most: int) -> list[list[int]]:
        return [draw.integers(0, vocab, draw.integers(0, most)).tolist() for _ in range(rows)]

    def pick(*choices: float) -> np.ndarray:
        return draw.choice(choices, rows)

    bias = [sorted(set(row)) for row in ids(4)]
    return logits, parameters(
        rows,
        temperature=pick(0.0, 0.3, 1.0, 1.7),
        top_p=pick(1.0, 1.0, 0.9, 0.3, 0.001),
        min_p=pick(0.0, 0.0, 0.05, 0.9),
        top_k=pick(0, 0, 1, 5, 50, 100_000),
        repetition_penalty=pick(1.0, 1.3, 0.7),
        presence_penalty=pick(0.0, 0.5, -0.5),
        frequency_penalty=pick(0.0, 0.4, -0.1),
        seed=draw.integers(0, 2**63, rows).astype(np.uint64) * np.uint64(2) + np.uint64(1),
        choice=draw.integers(0, 4, rows),
        position=draw.integers(0, 5000, rows),
        history=ids(40),
        prompt_tokens=draw.integers(0, 20, rows),
        bias=bias,
        bias_values=[draw.uniform(-5, 5, len(row)).tolist() for row in bias],
        allowed=ids(30) if seed % 4 == 0 else [[]] * rows,
        banned=ids(3),
    )


@pytest.mark.parametrize("seed", range(200))
def test_agrees_with_the_twin(seed):
    logits, rows = random_case(seed)
    tokens, faults = SAMPLER.choose_tokens(logits, rows)
    wanted, wanted_faults = REFERENCE.choose_tokens(logits, rows)
    assert tokens.tolist() == wanted.tolist()
    assert faults.tolist() == wanted_faults.tolist()


def test_philox_is_the_published_function():
    # Known answers of the Random123 distribution (kat_vectors, philox4x32 10), for counters our use can reach.
    assert philox(0, 0, 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


@pytest.mark.parametrize("changes", [{}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 1.6},
                                     {"temperature": 0.5, "top_p": 0.95, "top_k": 12}])  # fmt: skip
def test_draws_follow_the_distribution(changes):
    """Chi-square of 20,000 draws with fixed seeds against probabilities from float64; fails by chance 1 in 10,000."""
    count, logits = 20_000, np.linspace(2, -3, 24).astype(np.float32)
    rows = parameters(count, position=np.arange(count), seed=1234, **changes)
    tokens, _ = SAMPLER.choose_tokens(np.tile(logits, (count, 1)), rows)
    weights = np.exp(logits.astype(np.float64) / changes.get("temperature", 1.0))
    weights[weights < weights[0] * changes.get("min_p", 0.0)] = 0
    weights[changes.get("top_k", 24) :] = 0
    share = weights / weights.sum()
    share[np.cumsum(share) - share >= changes.get("top_p", 1.0)] = 0
    expected = count * share / share.sum()
    seen = np.bincount(tokens, minlength=24)
    assert not seen[expected == 0].any()
    kept = expected > 0
    chi_square = ((seen[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    freedom = kept.sum() - 1
    # Wilson-Hilferty: the cube root of a chi-square is nearly normal; 3.72 deviations.
    assert (chi_square / freedom) ** (1 / 3) < 1 - 2 / (9 * freedom) + 3.72 * np.sqrt(2 / (9 * freedom))


def test_seed_choice_and_position_are_all_that_matter():
    draw = np.random.default_rng(5)
    logits = draw.standard_normal((64, 3000)).astype(np.float32)
    seeds, positions = draw.integers(0, 2**40, 64).astype(np.uint64), draw.integers(0, 99, 64)
    together, _ = SAMPLER.choose_tokens(logits, parameters(64, seed=seeds, position=positions))
    for row in range(64):
        one = parameters(1, seed=seeds[row], position=positions[row])
        alone, _ = CpuSampler(_native.Pool(1)).choose_tokens(logits[row : row + 1], one)
        assert alone[0] == together[row]
    other, _ = SAMPLER.choose_tokens(logits, parameters(64, seed=seeds, position=positions, choice=1))
    assert (other != together).mean() > 0.9


def test_greedy_ties_go_to_the_lowest_id():
    logits = np.zeros((1, 5000), np.float32)
    logits[0, [4999, 17, 1600]] = 3.0
    assert SAMPLER.choose_tokens(logits, parameters(1, temperature=0.0))[0].tolist() == [17]
    assert SAMPLER.choose_tokens(logits, parameters(1, temperature=0.0, banned=[[17]]))[0].tolist() == [1600]
    assert SAMPLER.choose_tokens(logits, parameters(1, temperature=0.0, bias=[[3]], bias_values=[[4.0]]))[0][0] == 3


def test_penalties_by_hand():
    logits = np.array([[2.0, 1.9, -1.0, -1.4]], np.float32)
    cases = [
        ({"history": [[0]], "prompt_tokens": 1, "repetition_penalty": 2.0}, 1),  # 2.0 -> 1.0
        ({"history": [[0]], "prompt_tokens": 1, "presence_penalty": 9.0}, 0),  # the prompt does not count
        ({"history": [[0]], "prompt_tokens": 0, "presence_penalty": 0.2}, 1),
        ({"history": [[0, 0, 0]], "prompt_tokens": 1, "frequency_penalty": 0.04}, 0),
        ({"history": [[0, 0, 0]], "prompt_tokens": 1, "frequency_penalty": 0.06}, 1),
        ({"history": [[2]], "prompt_tokens": 1, "repetition_penalty": 2.0, "allowed": [[2, 3]]}, 3),  # -1 -> -2
    ]
    for changes, token in cases:
        assert SAMPLER.choose_tokens(logits, parameters(1, temperature=0.0, **changes))[0].tolist() == [token]


def test_faulty_rows_are_marked_and_their_neighbours_are_not():
    logits = np.zeros((6, 40), np.float32)
    logits[0, 3], logits[1, 39], logits[2] = np.nan, np.inf, -np.inf
    logits[4, 7] = -np.inf
    rows = parameters(6, allowed=[[], [], [], [5], [], []], banned=[[], [], [], [5], [], []], top_k=5)
    tokens, faults = SAMPLER.choose_tokens(logits, rows)
    assert faults.tolist() == [1, 1, 1, 2, 0, 0]
    assert tokens[:4].tolist() == [-1, -1, -1, -1]
    assert (tokens[4:] >= 0).all()


@pytest.mark.parametrize("vocab", [1, 15, 16, 17, 1025, 3000])
def test_scores(vocab):
    draw = np.random.default_rng(vocab)
    logits = np.round(draw.standard_normal((4, vocab)) * 3, 1).astype(np.float32)
    logits[0, 0] = -np.inf if vocab > 1 else 0.0
    tokens, top = draw.integers(0, vocab, 4).astype(np.int32), min(vocab, 20)
    found, wanted = SAMPLER.score_tokens(logits, tokens, top), REFERENCE.score_tokens(logits, tokens, top)
    np.testing.assert_allclose(found[0], wanted[0], atol=2e-5)
    np.testing.assert_allclose(found[3], wanted[3], atol=2e-5)
    assert found[1].tolist() == wanted[1].tolist()
    finite = wanted[3] > -np.inf
    assert found[2][finite].tolist() == wanted[2][finite].tolist()


BAD_PARAMETERS = {
    "temperature negative": {"temperature": -1.0},
    "temperature not a number": {"temperature": np.nan},
    "top_p zero": {"top_p": 0.0},
    "top_p above one": {"top_p": 1.5},
    "min_p negative": {"min_p": -0.1},
    "repetition zero": {"repetition_penalty": 0.0},
    "presence infinite": {"presence_penalty": np.inf},
    "frequency not a number": {"frequency_penalty": np.nan},
    "prompt negative": {"prompt_tokens": -1},
    "history id too large": {"history": [[8]]},
    "bias id negative": {"bias": [[-1]]},
    "bias not a number": {"bias": [[1]], "bias_values": [[np.nan]]},
    "bias values missing": {"bias": [[1]], "bias_values": [[]]},
    "allowed id too large": {"allowed": [[1 << 30]]},
    "banned id too large": {"banned": [[8]]},
}


@pytest.mark.parametrize("name", BAD_PARAMETERS)
def test_parameters_out_of_range_are_refused(name):
    with pytest.raises(ValueError):
        SAMPLER.choose_tokens(np.zeros((1, 8), np.float32), parameters(1, **BAD_PARAMETERS[name]))


def test_malformed_lists_are_refused():
    logits, good = np.zeros((2, 8), np.float32), parameters(2, history=[[1, 2], [3]])
    for begin in ([0, 2], [0, 4, 3], [1, 2, 3], [0, 2, 2], [0, -1, 3]):
        bad = SimpleNamespace(**{**vars(good), "history_begin": np.array(begin, np.int32)})
        with pytest.raises(ValueError):
            SAMPLER.choose_tokens(logits, bad)
    for token in (-1, 8):
        with pytest.raises(ValueError):
            SAMPLER.score_tokens(logits, np.array([0, token], np.int32), 1)
    with pytest.raises(ValueError):
        SAMPLER.score_tokens(logits, np.zeros(2, np.int32), 9)
