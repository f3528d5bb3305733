"""Chat templates: the reference's output, and hostile ones stopped in time with nobody harmed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvern.core.errors import InvalidRequest, ModelFileError
from kvern.weights.chat_template import (
    MAX_TEMPLATE_CHARS,
    ChatTemplate,
    chat_template_from_file,
    chat_template_from_folder,
    chat_template_from_gguf,
)
from kvern.weights.tokenizer_gguf import tokenizer_from_gguf

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {{- message['content'] | trim }}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
"""
QWEN = """{%- if tools %}
    {{- '# Tools' + (tools | tojson(indent=2)) }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- generation %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content.split('</think>')[-1].lstrip('\\n') }}
    {%- endgeneration %}
    {{- '<|im_end|>\\n' }}
    {{- message | tojson }}
{%- endfor %}
last {{ ns.last }} {{ strftime_now("%Y") | length }}
    {%  if add_generation_prompt  %}
    {{- '<|im_start|>assistant\\n' }}
    {%  if enable_thinking is defined and enable_thinking is false  %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%  endif  %}
{%  endif  %}
"""
CHAT = [
    {"role": "user", "content": "  Hi, \u00e9\U0001f600 <b> & 'x'\n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."},
    {"role": "user", "content": "And?"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *CHAT]
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>"}


@pytest.fixture
def made() -> Iterator[Any]:
    """Make templates whose workers end with the test."""
    templates: list[ChatTemplate] = []

    def make(source: str, **options: Any) -> ChatTemplate:
        templates.append(ChatTemplate(source, TOKENS, **options))
        return templates[-1]

    yield make
    for template in templates:
        template.close()


@pytest.mark.peers
@pytest.mark.parametrize("source", [CHATML, GEMMA, QWEN], ids=["chatml", "gemma", "qwen"])
@pytest.mark.parametrize("conversation", [CHAT, SYSTEM], ids=["plain", "system"])
@pytest.mark.parametrize("generation", [True, False])
def test_equal_to_transformers(
    made: Any, trained_bpe: Any, source: str, conversation: list[dict[str, str]], generation: bool
) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference needs transformers")
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=trained_bpe(), **TOKENS)
    expected = reference.apply_chat_template(
        conversation, chat_template=source, tokenize=False, add_generation_prompt=generation
    )
    assert made(source).render(conversation, add_generation_prompt=generation) == expected


@pytest.mark.peers
def test_extra_variables_reach_the_template(made: Any, trained_bpe: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference needs transformers")
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=trained_bpe(), **TOKENS)
    expected = reference.apply_chat_template(
        CHAT, chat_template=QWEN, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert made(QWEN).render(CHAT, extra={"enable_thinking": False}) == expected
    assert "<think>" in expected


def test_the_template_may_refuse_the_conversation(made: Any) -> None:
    template = made(GEMMA)
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        template.render([CHAT[0], CHAT[0]])
    assert caught.value.field == "messages"
    assert template.render(CHAT).startswith("<bos>")


HOSTILE = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ messages.append(1) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for a in messages * 99999999999 %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{{ 'a' * 10**10 }}",
    "{% set n = 10 ** (10 ** messages|length ** 7) %}{{ n }}",
    "{% set n = messages|length + 10 ** 9 %}{{ ('%' ~ n ~ 'd') % 1 }}",
    "{% set n = messages|length + 10 ** 9 %}{{ 'x' | center(n) }}",
    "{% set n = messages|length + 10 ** 9 %}{{ ('{:' ~ n ~ '}').format(1) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{{ range(10**9) | list }}",
    "{{ strftime_now('%Y') * (messages|length * 10**9) }}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_hostile_templates_are_stopped(made: Any, source: str) -> None:
    hostile, healthy = made(source), made(CHATML)
    healthy.check()
    hostile.check()
    started = time.monotonic()
    with pytest.raises(InvalidRequest):
        hostile.render(CHAT)
    assert time.monotonic() - started < 10  # 1 s of its own; the rest is a busy machine's
    assert healthy.render(CHAT).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("source", ["{{ 'x' | center(10**9) }}", "{% if %}", "{{ 10**(10**9) }}", "{% endfor %}"])
def test_templates_that_do_not_compile_are_refused_at_load(made: Any, source: str) -> None:
    with pytest.raises(ModelFileError, match="does not compile"):
        made(source).check()


def test_a_killed_worker_is_replaced(made: Any) -> None:
    template = made("{% if messages|length > 1 %}{% for a in range(99999) %}{% for b in range(99999) %}"
                    "{% endfor %}{% endfor %}{% endif %}ok", timeout_s=0.2)  # fmt: skip
    assert template.render(CHAT[:1]) == "ok"
    with pytest.raises(InvalidRequest, match=r"0\.2 s"):
        template.render(CHAT)
    assert template.render(CHAT[:1]) == "ok"


def test_the_worker_sees_no_environment(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVERN_SECRET_OF_THE_TEST", "x")
    template = made("ok")
    template.check()
    environment = Path(f"/proc/{template._worker.pid}/environ").read_bytes()
    assert b"KVERN_SECRET" not in environment


def test_output_is_bounded(made: Any) -> None:
    template = made("{{ messages[0].content }}{{ messages[0].content }}", max_output_chars=100)
    assert template.render([{"role": "user", "content": "x" * 50}]) == "x" * 100
    with pytest.raises(InvalidRequest, match="100 characters"):
        template.render([{"role": "user", "content": "x" * 51}])


def test_oversized_templates_are_refused(tmp_path: Path, trained_bpe: Any) -> None:
    with pytest.raises(ModelFileError, match=str(MAX_TEMPLATE_CHARS)):
        ChatTemplate("x" * (MAX_TEMPLATE_CHARS + 1), {})


def test_clock_is_passed_in(made: Any) -> None:
    assert made("{{ strftime_now('%Y') }}", clock=lambda: 86400.0 * 365 * 12).render(CHAT) == "1981"


def test_sources_of_templates(tmp_path: Path, trained_bpe: Any, bpe_metadata: Any) -> None:
    metadata = bpe_metadata(trained_bpe(), "gpt-2")
    tokenizer = tokenizer_from_gguf(metadata)
    source = "{{ bos_token }}{{ eos_token }}{{ messages[0].content }}"
    assert chat_template_from_gguf(metadata, tokenizer) is None
    assert chat_template_from_folder(tmp_path, tokenizer) is None
    config = tmp_path / "tokenizer_config.json"
    found = [chat_template_from_gguf({**metadata, "tokenizer.chat_template": source}, tokenizer)]
    config.write_text(json.dumps({"chat_template": source}))
    found.append(chat_template_from_folder(tmp_path, tokenizer))
    config.write_text(json.dumps({"chat_template": [{"name": "default", "template": source}]}))
    found.append(chat_template_from_folder(tmp_path, tokenizer))
    (tmp_path / "chat_template.jinja").write_text(source)
    config.write_text("{}")
    found.append(chat_template_from_folder(tmp_path, tokenizer))
    found.append(chat_template_from_file(tmp_path / "chat_template.jinja", tokenizer))
    for template in found:
        assert template is not None
        assert template.render(CHAT[2:]) == "<|im_start|><|im_end|>And?"
        template.close()


def test_smollm2_own_template(smollm2_metadata: dict[str, Any]) -> None:
    tokenizer = tokenizer_from_gguf(smollm2_metadata)
    template = chat_template_from_gguf(smollm2_metadata, tokenizer)
    assert template is not None
    text = template.render([{"role": "user", "content": "Hi"}])
    template.close()
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer.encode(text, add_special=False)
    assert ids.count(tokenizer.bos_id) == 3  # system, user, assistant: none doubled
