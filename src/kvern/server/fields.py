"""The request bodies of the OpenAI dialect, as types.

Three kinds of fields: those that work; those that change nothing here and are accepted (``Ignored``); those that
would change the meaning of the answer and are refused by name (``Refused``) unless null or their neutral value.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kvern.core.errors import InvalidRequest

Ignored = msgspec.Raw  # any JSON, not even parsed
Refused = Any

_NOTHING = msgspec.Raw(b"null")


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = False
    include_obfuscation: Ignored = _NOTHING


class SamplingFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Fields that chat and completions share. Names and meanings: OpenAI's, then vLLM's."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = False
    include_stop_str_in_output: bool | None = False
    skip_special_tokens: bool | None = True
    max_tokens: int | None = None
    min_tokens: int | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    # Accepted without effect.
    user: Ignored = _NOTHING
    metadata: Ignored = _NOTHING
    store: Ignored = _NOTHING
    service_tier: Ignored = _NOTHING
    prompt_cache_key: Ignored = _NOTHING
    prompt_cache_retention: Ignored = _NOTHING
    safety_identifier: Ignored = _NOTHING
    # Refused.
    bad_words: Refused = None
    structured_outputs: Refused = None
    guided_json: Refused = None
    guided_regex: Refused = None
    guided_choice: Refused = None
    guided_grammar: Refused = None
    use_beam_search: Refused = None
    best_of: Refused = None
    prompt_logprobs: Refused = None
    truncate_prompt_tokens: Refused = None


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One message. Fields an earlier answer carries (refusal, annotations, ...) may come back empty."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    refusal: Refused = None
    annotations: Refused = None
    audio: Refused = None
    function_call: Refused = None
    tool_calls: Refused = None
    tool_call_id: Refused = None


class ChatRequest(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = True
    chat_template_kwargs: dict[str, str | bool | int | float | None] | None = None
    # Accepted without effect.
    parallel_tool_calls: Ignored = _NOTHING
    # Refused.
    tools: Refused = None
    tool_choice: Refused = None
    functions: Refused = None
    function_call: Refused = None
    response_format: Refused = None
    modalities: Refused = None
    audio: Refused = None
    prediction: Refused = None
    web_search_options: Refused = None
    reasoning_effort: Refused = None
    verbosity: Refused = None
    chat_template: Refused = None
    documents: Refused = None
    continue_final_message: Refused = None


class CompletionRequest(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    prompt: str | list[Any]
    logprobs: int | None = None
    echo: bool | None = False
    add_special_tokens: bool | None = True
    suffix: Refused = None
    response_format: Refused = None
    prompt_embeds: Refused = None


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "suffix": ("",),
    "best_of": (1,),
    "use_beam_search": (False,),
    "continue_final_message": (False,),
    "bad_words": ([],),
    "documents": ([],),
    "tool_calls": ([],),
    "annotations": ([],),
}
_REFUSED_FIELDS: dict[type[msgspec.Struct], tuple[str, ...]] = {
    shape: tuple(item.name for item in msgspec.structs.fields(shape) if item.type is Refused and item.default is None)
    for shape in (ChatRequest, CompletionRequest, ChatMessage)
}


def refuse_unsupported(body: msgspec.Struct, place: str = "") -> None:
    """Raise InvalidRequest for a field that is set, understood, and not supported."""
    for name in _REFUSED_FIELDS[type(body)]:
        value = getattr(body, name)
        if value is not None and value not in _NEUTRAL.get(name, ()):
            raise InvalidRequest(f"{place}{name} is not supported", field=place + name, code="unsupported_field")
