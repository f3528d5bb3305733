"""``LLM`` and ``AsyncLLM`` on a tiny model."""

from __future__ import annotations

import asyncio

import pytest
from tiny_engine import model_file

import kvern
from kvern.core.errors import ConfigError, InvalidRequest, ModelFileError, PlanError
from kvern.llm import LLM, AsyncLLM
from kvern.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
OPTIONS = {"backend": "cpu", "threads": 2, "max_context": 256, "progress": False}


@pytest.fixture(scope="module")
def llm():
    with LLM(str(model_file()), **OPTIONS) as llm:
        yield llm


def test_the_names_are_exported() -> None:
    assert (kvern.LLM, kvern.AsyncLLM, kvern.SamplingParams) == (LLM, AsyncLLM, SamplingParams)
    with pytest.raises(AttributeError):
        _ = kvern.NoSuchName


def test_texts_and_token_ids_give_the_same(llm) -> None:
    ids = llm.tokenizer.encode("hello there")
    by_text, by_ids = llm.generate(["hello there", ids], GREEDY)
    assert by_text.prompt == "hello there"
    assert by_ids.prompt is None
    assert by_text.prompt_token_ids == by_ids.prompt_token_ids == ids
    assert by_text.outputs == by_ids.outputs
    (output,) = by_text.outputs
    assert len(output.token_ids) == 20
    assert output.text == llm.tokenizer.decode(output.token_ids)
    assert (output.finish_reason, output.stop_reason, output.logprobs) == ("length", None, None)
    assert llm.generate(ids, GREEDY)[0].outputs == by_text.outputs


def test_many_prompts_come_back_in_order(llm) -> None:
    prompts = [f"prompt {n} " * (n % 5 + 1) for n in range(70)]
    together = llm.generate(prompts, GREEDY)
    assert [output.prompt for output in together] == prompts
    assert together[33].outputs == llm.generate(prompts[33], GREEDY)[0].outputs


def test_choices_differ_and_a_seed_repeats_them(llm) -> None:
    params = SamplingParams(n=3, seed=5, max_tokens=12, ignore_eos=True)
    (first,), (second,) = llm.generate("abc", params), llm.generate("abc", params)
    assert [output.index for output in first.outputs] == [0, 1, 2]
    assert first.outputs == second.outputs
    assert len({tuple(output.token_ids) for output in first.outputs}) == 3


def test_a_stop_string_ends_the_text(llm) -> None:
    whole = llm.generate("hello there", GREEDY)[0].outputs[0].text
    stop = whole[5:8]
    cut = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, stop=stop)
    output = llm.generate("hello there", cut)[0].outputs[0]
    assert output.text == whole[: whole.index(stop)]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    kept = SamplingParams(
        temperature=0.0, max_tokens=20, ignore_eos=True, stop=[stop], include_stop_str_in_output=True
    )
    assert llm.generate("hello there", kept)[0].outputs[0].text == whole[: whole.index(stop) + len(stop)]


def test_a_stop_token_ends_the_text(llm) -> None:
    tokens = llm.generate("hello there", GREEDY)[0].outputs[0].token_ids
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, stop_token_ids=[tokens[4]])
    output = llm.generate("hello there", params)[0].outputs[0]
    assert output.token_ids == tokens[: tokens.index(tokens[4]) + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", tokens[4])


def test_logprobs_of_tokens_and_of_the_prompt(llm) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, logprobs=3, prompt_logprobs=0)
    (result,) = llm.generate("hello there", params)
    output = result.outputs[0]
    assert len(output.logprobs) == 4
    for token, found in zip(output.token_ids, output.logprobs, strict=True):
        assert found[token].rank == 1
        assert len(found) == 3
        assert max(entry.logprob for entry in found.values()) == found[token].logprob < 0
    assert output.cumulative_logprob == pytest.approx(
        sum(found[token].logprob for token, found in zip(output.token_ids, output.logprobs, strict=True))
    )
    assert result.prompt_logprobs[0] is None
    assert [next(iter(found)) for found in result.prompt_logprobs[1:]] == result.prompt_token_ids[1:]


def test_masks_bias_and_minimum_reach_the_sampler(llm) -> None:
    allowed = SamplingParams(max_tokens=30, seed=1, allowed_token_ids=[40, 41], ignore_eos=True)
    assert set(llm.generate("abc", allowed)[0].outputs[0].token_ids) == {40, 41}
    biased = SamplingParams(temperature=0.0, max_tokens=5, logit_bias={50: 100.0}, ignore_eos=True)
    assert llm.generate("abc", biased)[0].outputs[0].token_ids == [50] * 5
    stopping = SamplingParams(temperature=0.0, max_tokens=9, logit_bias={50: 100.0}, stop_token_ids=[50])
    assert llm.generate("abc", stopping)[0].outputs[0].token_ids == [50]
    late = SamplingParams(temperature=0.0, max_tokens=9, min_tokens=3, logit_bias={50: 100.0}, stop_token_ids=[50])
    tokens = llm.generate("abc", late)[0].outputs[0].token_ids
    assert tokens.index(50) == 3
    assert len(tokens) == 4


def test_penalties_reach_the_sampler(llm) -> None:
    plain = llm.generate("abc", SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True))[0].outputs[0]
    penalised = SamplingParams(
        temperature=0.0, max_tokens=60, ignore_eos=True, frequency_penalty=2.0, presence_penalty=2.0
    )
    assert len(set(llm.generate("abc", penalised)[0].outputs[0].token_ids)) > len(set(plain.token_ids))


@pytest.mark.parametrize("prompt", ["", [], [10**9], [-1], "x " * 2000])
def test_bad_prompts_are_refused(llm, prompt) -> None:
    if prompt == "" and llm.tokenizer.encode(""):
        pytest.skip("this tokenizer puts a start token in front: an empty text is a prompt")
    with pytest.raises(InvalidRequest) as caught:
        llm.generate([prompt], GREEDY)
    assert caught.value.field == "prompt"


def test_parameters_must_match_the_prompts(llm) -> None:
    with pytest.raises(InvalidRequest, match="2 prompts but 1"):
        llm.generate(["a", "b"], [GREEDY])


def test_async_outputs_are_deltas() -> None:
    async def check() -> None:
        async with AsyncLLM(str(model_file()), embed=False, **OPTIONS) as llm:
            text, tokens, reasons = "", [], []
            async for part in llm.generate("hello there", GREEDY):
                text += part.outputs[0].text
                tokens += part.outputs[0].token_ids
                reasons.append(part.outputs[0].finish_reason)
            assert len(tokens) == 20
            assert text == llm.tokenizer.decode(tokens)
            assert reasons == [None] * (len(reasons) - 1) + ["length"]
            stream = llm.generate("hello there", SamplingParams(max_tokens=200, ignore_eos=True))
            await anext(stream)
            await stream.aclose()
            while (stats := await llm.client.stats()).running or stats.last_step_age_s:
                pass
            assert stats.pages_used == 0

    asyncio.run(check())


def test_bad_options_are_told() -> None:
    with pytest.raises(ConfigError, match="no option 'maximum'"):
        LLM(str(model_file()), maximum=3)
    with pytest.raises(ConfigError, match="weight_format"):
        LLM(str(model_file()), weight_format="q1", **OPTIONS)
    with pytest.raises(ModelFileError):
        LLM("/no/such/model.gguf")


@pytest.mark.parametrize("embed", [True, False])
def test_too_little_memory_is_refused_with_the_value_that_would_do(embed) -> None:
    with pytest.raises(PlanError, match="bytes"):
        LLM(str(model_file()), memory=1 << 20, embed=embed, **OPTIONS)
