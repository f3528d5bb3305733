"""/v1/chat/completions, driven by the `openai` package."""

from __future__ import annotations

from typing import Any

import openai
import pytest

USER = [{"role": "user", "content": "abc \u00e9\U0001f600"}]
RENDERED = "<|im_start|>user\nabc \u00e9\U0001f600<|im_end|>\n<|im_start|>assistant\n"
SAID = "user\nabc \u00e9\U0001f600"  # the engine repeats its prompt, up to the end token


def test_whole_answer(client: Any) -> None:
    answer = client.chat.completions.create(model="demo", messages=USER, seed=1)
    [choice] = answer.choices
    assert choice.message.content == SAID
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert answer.object == "chat.completion"
    assert answer.model == "demo"
    assert answer.created == 1_700_000_000
    assert answer.id.startswith("chatcmpl-")
    used = answer.usage
    assert used.total_tokens == used.prompt_tokens + used.completion_tokens
    assert used.completion_tokens == 1 + len(SAID.encode()) - 1 + 1  # start token, bytes ("ab" is one), end token
    assert used.prompt_tokens_details.cached_tokens == used.prompt_tokens // 2
    assert used.completion_tokens_details.reasoning_tokens == 0


def test_streamed_answer_equals_the_whole_one(client: Any) -> None:
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=USER, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all("role" not in chunk.choices[0].delta.model_fields_set for chunk in chunks[1:-1])
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(texts) == SAID
    assert not any("\ufffd" in text for text in texts)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) == {None}
    assert "content" not in chunks[-2].choices[0].delta.model_fields_set
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(SAID.encode()) + 1
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_length_limit(client: Any) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(model="demo", messages=USER, **{name: 4})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 4
        assert answer.choices[0].message.content == "use"


def test_without_a_limit_the_context_is_the_limit(client: Any, server: Any) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "x" * 400}], extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == server.engine.info.max_context


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(client: Any, server: Any, stream: bool) -> None:
    before = len(server.engine.aborted)
    answer = client.chat.completions.create(model="demo", messages=USER, stop=["zzz", "bc \u00e9"], stream=stream)
    if stream:
        chunks = list(answer)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        end = chunks[-1].choices[0]
    else:
        text, end = answer.choices[0].message.content, answer.choices[0]
        assert answer.usage.completion_tokens == len("user\nabc \u00e9".encode())
    assert text == "user\na"
    assert end.finish_reason == "stop"
    assert end.stop_reason == "bc \u00e9"
    server.wait_until(lambda: len(server.engine.aborted) == before + 1)


def test_a_stop_string_can_be_kept(client: Any) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=USER, stop="abc", extra_body={"include_stop_str_in_output": True}
    )
    assert answer.choices[0].message.content == "user\nabc"


def test_several_choices(client: Any) -> None:
    answer = client.chat.completions.create(model="demo", messages=USER, n=3)
    assert [choice.message.content for choice in answer.choices] == [SAID, SAID, SAID[1:]]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    chunks = list(client.chat.completions.create(model="demo", messages=USER, n=3, stream=True))
    texts = {0: "", 1: "", 2: ""}
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(texts.values()) == [SAID, SAID, SAID[1:]]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client: Any, stream: bool) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=USER, logprobs=True, top_logprobs=2, max_tokens=3, stream=stream
    )
    if stream:
        found = [chunk.choices[0].logprobs for chunk in answer]
        rows = [row for item in found if item is not None for row in item.content]
    else:
        rows = answer.choices[0].logprobs.content
    assert [row.token for row in rows] == ["<|im_start|>", "u", "s"]
    assert rows[1].bytes == list(b"u")
    assert rows[1].logprob == -0.5
    assert [top.logprob for top in rows[1].top_logprobs] == [-0.5, -1.0]


def test_the_seed_is_drawn_when_absent_and_kept_when_given(client: Any, server: Any) -> None:
    client.chat.completions.create(model="demo", messages=USER, max_tokens=1)
    client.chat.completions.create(model="demo", messages=USER, max_tokens=1)
    client.chat.completions.create(model="demo", messages=USER, max_tokens=1, seed=42)
    seeds = [request.sampling.seed for request in server.engine.requests[-3:]]
    assert seeds[2] == 42
    assert seeds[0] != seeds[1]


def test_text_parts_and_roles(client: Any, server: Any) -> None:
    client.chat.completions.create(
        model="demo",
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": "ok", "refusal": None},
            {"role": "user", "name": "ann", "content": "more"},
        ],
        max_tokens=1,
    )
    text = server.engine.tokenizer.decode(server.engine.requests[-1].prompt, skip_special=False)
    assert text == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>\n"
        "<|im_start|>assistant\nok<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    )


def test_fields_without_effect_are_accepted(client: Any) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=USER,
        user="me",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        tool_choice="none",
        max_tokens=1,
    )
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"guided_json": {}}, "guided_json"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs"),
    ],
)
def test_fields_that_would_change_the_meaning_are_refused_by_name(
    client: Any, given: dict[str, Any], field: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=USER, extra_body=given)
    assert caught.value.body["param"] == field
    assert field in caught.value.body["message"]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "messages[0].tool_call_id"),
        ({"role": "wizard", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages[0].content[0]"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_used_are_refused_with_their_place(client: Any, message: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=[message])
    assert caught.value.body["param"] == param


def test_unknown_models_are_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=USER)
    assert caught.value.body["code"] == "model_not_found"
    assert client.chat.completions.create(model="alias", messages=USER, max_tokens=1).model == "alias"


def test_a_chat_over_the_context_is_refused_with_what_fits(client: Any, server: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "x" * 600}])
    assert caught.value.body["code"] == "context_length_exceeded"
    assert caught.value.body["param"] == "messages"
    assert str(server.engine.info.max_context - 1) in caught.value.body["message"]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=USER, max_completion_tokens=500)
    assert caught.value.body["param"] == "max_completion_tokens"
    prompt = len(server.engine.tokenizer.encode(RENDERED))
    assert f"max_completion_tokens may be {server.engine.info.max_context - prompt}" in caught.value.body["message"]


def test_a_model_without_a_template_says_so(serve: Any) -> None:
    with serve(template=None) as bare, openai.OpenAI(base_url=bare.url + "/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="demo", messages=USER)
        assert caught.value.body["code"] == "no_chat_template"
        assert client.completions.create(model="demo", prompt="hi", max_tokens=1).choices[0].text == "h"


def test_a_template_that_refuses_is_a_client_error(serve: Any) -> None:
    template = "{{ raise_exception('no system role') }}"
    with serve(template=template) as bare, openai.OpenAI(base_url=bare.url + "/v1", api_key="x") as client:
        with pytest.raises(openai.BadRequestError, match="no system role") as caught:
            client.chat.completions.create(model="demo", messages=USER)
        assert caught.value.body["param"] == "messages"


def test_model_defaults_hold_unless_the_request_says_otherwise(serve: Any) -> None:
    with (
        serve(sampling_defaults={"temperature": 0.3, "top_k": 7}) as one,
        openai.OpenAI(base_url=one.url + "/v1", api_key="x") as client,
    ):
        client.chat.completions.create(model="demo", messages=USER, max_tokens=1)
        client.chat.completions.create(model="demo", messages=USER, max_tokens=1, temperature=0)
        first, second = (request.sampling for request in one.engine.requests)
    assert (first.temperature, first.top_k) == (0.3, 7)
    assert (second.temperature, second.top_k) == (0.0, 7)
