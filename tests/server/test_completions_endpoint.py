"""/v1/completions, driven by the `openai` package."""

from __future__ import annotations

from typing import Any

import openai
import pytest


def test_whole_answer_repeats_the_prompt(client: Any) -> None:
    answer = client.completions.create(model="demo", prompt="xyz\u00e9", max_tokens=10)
    [choice] = answer.choices
    assert choice.text == "xyz\u00e9xyz\u00e9"
    assert choice.finish_reason == "length"
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 10)
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


def test_the_default_length_is_sixteen(client: Any) -> None:
    assert client.completions.create(model="demo", prompt="xyz").usage.completion_tokens == 16


def test_streamed_answer_equals_the_whole_one(client: Any) -> None:
    chunks = list(
        client.completions.create(
            model="demo", prompt="xyz\u00e9", max_tokens=10, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "xyz\u00e9xyz\u00e9"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "length"]
    assert chunks[-2].choices[0].text == ""
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 15


def test_a_character_cut_by_the_length_limit_is_shown_as_such(client: Any) -> None:
    assert client.completions.create(model="demo", prompt="x\u00e9", max_tokens=2).choices[0].text == "x\ufffd"


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ([88, 89], [0]),
        (["xy", "pq"], ["xyxy", "pqpq"]),
        ([[88, 89], [79, 80]], [0, 1]),
    ],
)
def test_prompts_as_lists(client: Any, server: Any, prompt: Any, texts: list[Any]) -> None:
    answer = client.completions.create(model="demo", prompt=prompt, max_tokens=4)
    tokenizer = server.engine.tokenizer
    ids = [prompt] if isinstance(prompt[0], int) else prompt
    expected = [tokenizer.decode(one * 2) if isinstance(one, list) else one * 2 for one in ids]
    assert [choice.text for choice in answer.choices] == expected
    assert len(texts) == len(answer.choices)
    assert answer.usage.prompt_tokens == 2 * len(ids)
    assert answer.usage.completion_tokens == 4 * len(ids)


def test_choices_of_several_prompts_are_in_order(client: Any) -> None:
    answer = client.completions.create(model="demo", prompt=["xy", "pq"], n=2, max_tokens=2)
    assert [choice.text for choice in answer.choices] == ["xy", "yx", "pq", "qp"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 4
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


def test_burst_deltas_stop_at_the_stop_string(client: Any, server: Any) -> None:
    answer = client.completions.create(model="demo", prompt="burst xyz", max_tokens=20, stop="st")
    assert answer.choices[0].text == "bur"
    assert answer.usage.completion_tokens == 5  # b u r s t; the one made beyond is not billed
    assert answer.choices[0].stop_reason == "st"


def test_stop_token_ids_end_the_answer_and_stay_hidden(client: Any, server: Any) -> None:
    [y] = server.engine.tokenizer.encode("y")
    for keep, text in ((False, "x"), (True, "xy")):
        answer = client.completions.create(
            model="demo", prompt="xyz", extra_body={"stop_token_ids": [y], "include_stop_str_in_output": keep}
        )
        assert answer.choices[0].text == text
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].stop_reason == y
        assert answer.usage.completion_tokens == 2


def test_min_tokens_and_ignore_eos_reach_the_engine(client: Any, server: Any) -> None:
    client.completions.create(
        model="demo", prompt="x", max_tokens=5, extra_body={"min_tokens": 3, "ignore_eos": True}
    )
    sampling = server.engine.requests[-1].sampling
    assert sampling.min_tokens == 3
    assert sampling.stop_token_ids == ()
    client.completions.create(model="demo", prompt="x", max_tokens=5)
    assert server.engine.requests[-1].sampling.stop_token_ids == (258,)


def test_bias_and_penalties_reach_the_engine(client: Any, server: Any) -> None:
    client.completions.create(
        model="demo", prompt="x", logit_bias={"5": -100, "7": 2.5}, presence_penalty=1, frequency_penalty=-1.5,
        temperature=0.5, top_p=0.9, extra_body={"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1},
    )  # fmt: skip
    sampling = server.engine.requests[-1].sampling
    assert sampling.logit_bias == ((5, -100.0), (7, 2.5))
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1.0, -1.5, 1.1)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 4, 0.1)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_columns(client: Any, stream: bool) -> None:
    answer = client.completions.create(model="demo", prompt="x\u00e9", max_tokens=4, logprobs=2, stream=stream)
    found = [chunk.choices[0].logprobs for chunk in answer] if stream else [answer.choices[0].logprobs]
    tokens = [token for item in found if item is not None for token in item.tokens]
    offsets = [offset for item in found if item is not None for offset in item.text_offset]
    chances = [chance for item in found if item is not None for chance in item.token_logprobs]
    tops = [top for item in found if item is not None for top in item.top_logprobs]
    assert tokens == ["x", "bytes:\\xc3", "bytes:\\xa9", "x"]
    assert offsets == [0, 1, 1, 2]
    assert chances == [-0.5] * 4
    assert tops[0] == {"x": -0.5, "!": -1.0}


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_with_logprobs_as_evaluation_harnesses_ask(client: Any, max_tokens: int) -> None:
    answer = client.completions.create(
        model="demo", prompt=[88, 89, 90], max_tokens=max_tokens, echo=True, logprobs=1, temperature=0, seed=1234
    )
    found = answer.choices[0].logprobs
    assert len(found.tokens) == 3 + max_tokens
    assert found.token_logprobs[0] is None
    assert found.top_logprobs[0] is None
    assert found.token_logprobs[1:] == [-0.5] * (2 + max_tokens)
    assert max(found.top_logprobs[1].values()) == found.token_logprobs[1]
    assert found.text_offset == list(range(3 + max_tokens))
    assert answer.choices[0].text == "".join(found.tokens)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == max_tokens


def test_echo_alone_needs_no_engine(client: Any, server: Any) -> None:
    before = len(server.engine.requests)
    answer = client.completions.create(model="demo", prompt=["ab", "cd"], max_tokens=0, echo=True)
    assert [choice.text for choice in answer.choices] == ["ab", "cd"]
    assert answer.usage.completion_tokens == 0
    assert len(server.engine.requests) == before


def test_echo_streams_the_prompt_first(client: Any) -> None:
    chunks = list(client.completions.create(model="demo", prompt="xyz", max_tokens=3, echo=True, stream=True))
    assert chunks[0].choices[0].text.startswith("xyz")
    assert "".join(chunk.choices[0].text for chunk in chunks) == "xyzxyz"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[1], "x"]}, "prompt"),
        ({"prompt": [259]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": ["x"] * 257}, "prompt"),
        ({"prompt": ["x"] * 200, "n": 2}, "n"),
        ({"prompt": "x" * 512}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_bad_requests_name_the_field(client: Any, given: dict[str, Any], param: str) -> None:
    body = {"model": "demo", "prompt": "x", **given}
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{**body, "extra_body": {"prompt": body["prompt"]}})
    assert caught.value.body["param"] == param
    assert param in caught.value.body["message"]


def test_a_prompt_over_the_context_is_told_what_fits(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 511 fit"):
        client.completions.create(model="demo", prompt="x" * 600)
    with pytest.raises(openai.BadRequestError, match="max_tokens may be 412"):
        client.completions.create(model="demo", prompt="x" * 100, max_tokens=413)
    assert client.completions.create(model="demo", prompt="x" * 100, max_tokens=412).usage.total_tokens == 512


def test_engine_errors_before_the_first_token_are_plain_errors(client: Any) -> None:
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(model="demo", prompt="busy now", stream=stream)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "3"
        assert caught.value.body["type"] == "overloaded"
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(model="demo", prompt="dead now", stream=stream)
        assert (caught.value.status_code, caught.value.body["code"]) == (503, "engine_unavailable")
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="demo", prompt="refused now", stream=stream)
        assert caught.value.body["param"] == "prompt"


def test_a_failed_sequence_is_an_error_and_harms_no_other(client: Any) -> None:
    with pytest.raises(openai.InternalServerError, match="not finite"):
        client.completions.create(model="demo", prompt="fail now")
    with pytest.raises(openai.APIError, match="not finite"):
        list(client.completions.create(model="demo", prompt="fail now", stream=True))
    assert client.completions.create(model="demo", prompt="fine", max_tokens=4).choices[0].text == "fine"


def test_one_failing_choice_ends_the_request_and_frees_the_others(client: Any, server: Any) -> None:
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model="demo", prompt=["fail now", "slow now"])
    server.wait_until(lambda: not server.engine.live)
