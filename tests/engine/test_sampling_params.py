"""What may be asked of sampling: every refusal names the field, and what is accepted reaches the engine unchanged."""

from __future__ import annotations

import math

import pytest

from kvern.core.errors import InvalidRequest
from kvern.sampling_params import ModelLimits, SamplingParams, to_samplings

LIMITS = ModelLimits(vocab_size=100, max_context=50, eos_ids=frozenset({2, 7}))

BAD = {
    "n": [0, 65, 1.5, True, "2"],
    "temperature": [-0.1, 101, math.nan, math.inf, "1", None, True],
    "top_p": [0, 1.01, -1],
    "top_k": [-2, 1.5],
    "min_p": [-0.1, 1.1],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [-2.1, 2.1],
    "repetition_penalty": [0, 11],
    "seed": [2**64, -(2**63) - 1, 1.0],
    "stop": [[""], ["x"] * 17, ["x" * 1025], [1], 5, ""],
    "stop_token_ids": [[-1], ["a"], "12", [1] * 257],
    "ignore_eos": [1, None],
    "max_tokens": [0, -1, 1.0],
    "min_tokens": [-1, 17],
    "logprobs": [-1, 21],
    "prompt_logprobs": [-1, 21],
    "logit_bias": [{1: 101.0}, {-1: 1.0}, {"1": 1.0}, {1: math.nan}, [1], dict.fromkeys(range(1025), 0.0)],
    "allowed_token_ids": [[], [-1]],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_bad_values_are_refused_by_name(field, value) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("field", "params", "prompt"),
    [
        ("prompt", {}, []),
        ("prompt", {}, [1] * 50),
        ("prompt", {}, [100]),
        ("prompt", {}, [-1]),
        ("max_tokens", {"max_tokens": 48}, [1, 2, 3]),
        ("min_tokens", {"max_tokens": None, "min_tokens": 48}, [1, 2, 3]),
        ("stop_token_ids", {"stop_token_ids": [100]}, [1]),
        ("logit_bias", {"logit_bias": {100: 1.0}}, [1]),
        ("allowed_token_ids", {"allowed_token_ids": [5, 100]}, [1]),
    ],
)
def test_what_does_not_fit_the_model_is_refused_by_name(field, params, prompt) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_samplings(SamplingParams(**params), prompt, LIMITS)
    assert caught.value.field == field


def test_the_limit_is_named() -> None:
    with pytest.raises(InvalidRequest, match="may be 47"):
        to_samplings(SamplingParams(max_tokens=48), [1, 2, 3], LIMITS)


def test_what_reaches_the_engine() -> None:
    params = SamplingParams(
        n=2, temperature=0.5, top_k=-1, seed=-1, max_tokens=None, stop_token_ids=[9], logit_bias={3: -1}, logprobs=4
    )
    first, second = to_samplings(params, [1, 2, 3], LIMITS)
    assert (first.choice, second.choice) == (0, 1)
    assert first.seed == second.seed == 2**64 - 1
    assert first.max_tokens == 47
    assert first.top_k == 0
    assert first.stop_token_ids == (9, 2, 7)
    assert first.logit_bias == ((3, -1.0),)
    assert first.logprobs == 4


def test_ignoring_the_end_of_text() -> None:
    (sampling,) = to_samplings(SamplingParams(ignore_eos=True), [1], LIMITS)
    assert sampling.stop_token_ids == ()


def test_a_seed_that_was_not_given_is_drawn() -> None:
    seeds = {to_samplings(SamplingParams(), [1], LIMITS)[0].seed for _ in range(4)}
    assert len(seeds) == 4
