"""The server over a real engine (tiny model, process of its own): clients, fuzzing beside healthy streams, leaks.

Every field is fed bad values while four healthy streams run; those must finish with the tokens they have alone.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import openai
import pytest
import tiny_engine

from kvern.assembly.clients import make_client, open_text
from kvern.assembly.engine import EngineOptions
from kvern.server.app import make_app
from kvern.server.fields import ChatMessage, ChatRequest, CompletionRequest
from kvern.server.options import Limits, ServerOptions
from kvern.server.tokens import DetokenizeRequest, TokenizeRequest

CONTEXT = 384


@pytest.fixture(scope="module")
def server(run_server: Any) -> Iterator[Any]:
    path = tiny_engine.model_file("llama")
    text = open_text(path)
    client = make_client(
        EngineOptions.of(model=str(path), threads=2, max_context=CONTEXT, pages=96), limits=tiny_engine.QUICK
    )
    options = ServerOptions(model_names=("tiny",), ping_interval_s=1.0)
    running = run_server(client, make_app(client, text.tokenizer, text.template, options))
    yield running
    running.wait_until(lambda: not client._live)
    assert settled(running).pages_used == 0
    running.close()
    text.close()


def settled(server: Any) -> Any:
    """The engine's counts once nothing runs; a sequence just aborted keeps its pages until its step is over."""

    async def wait() -> Any:
        while True:
            stats = await server.engine.stats()
            if stats.running == stats.waiting == stats.pages_used == 0:
                return stats

    return server.ask(wait())


@pytest.fixture
def client(server: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def test_chat_is_the_same_streamed_and_whole_and_repeated(client: Any) -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "the and you"}], "seed": 5, "max_tokens": 40}
    whole = client.chat.completions.create(**asked)
    again = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert whole.choices[0].message.content == again.choices[0].message.content == text
    assert whole.usage.completion_tokens == 40
    other = client.chat.completions.create(**{**asked, "seed": 6})
    assert other.choices[0].message.content != text


def test_a_long_shared_prompt_is_found_in_the_cache(client: Any) -> None:
    prompt = list(range(20, 220))
    for _ in range(2):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=2, temperature=0)
    assert answer.usage.prompt_tokens_details.cached_tokens == 192  # three pages


def test_greedy_tokens_have_the_best_logprob(client: Any) -> None:
    answer = client.completions.create(model="tiny", prompt="the", max_tokens=6, temperature=0, logprobs=3)
    found = answer.choices[0].logprobs
    for chosen, top in zip(found.token_logprobs, found.top_logprobs, strict=True):
        assert chosen == max(top.values())
        assert chosen < 0
    assert len(found.tokens) == 6


def test_echo_scores_the_prompt_as_generation_does(client: Any) -> None:
    """Generate greedily, then ask for the logprobs of prompt + answer as an echo: the same numbers."""
    prompt = list(range(30, 45))
    made = client.completions.create(model="tiny", prompt=prompt, max_tokens=5, temperature=0, logprobs=1)
    chosen = [max(top, key=top.get) for top in made.choices[0].logprobs.top_logprobs]
    ids = httpx.post(str(client.base_url).replace("/v1/", "/tokenize"), json={"prompt": "x"}).json()
    assert ids["count"] >= 1
    scored = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=1, echo=True, temperature=0, logprobs=1
    )
    assert len(scored.choices[0].logprobs.token_logprobs) == len(prompt) + 1
    assert scored.choices[0].logprobs.token_logprobs[0] is None
    assert scored.choices[0].logprobs.token_logprobs[-1] == made.choices[0].logprobs.token_logprobs[0]
    assert scored.choices[0].logprobs.tokens[-1] == chosen[0]
    only = client.completions.create(model="tiny", prompt=prompt, max_tokens=0, echo=True, temperature=0, logprobs=1)
    assert only.choices[0].logprobs.token_logprobs == scored.choices[0].logprobs.token_logprobs[:-1]


def test_a_stop_string_ends_the_work_in_the_engine(client: Any, server: Any) -> None:
    asked = {"model": "tiny", "prompt": "the", "seed": 3, "max_tokens": 300, "extra_body": {"ignore_eos": True}}
    text = client.completions.create(**asked).choices[0].text
    stop = text[20:22]
    answer = client.completions.create(**asked, stop=stop)
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert settled(server).pages_used == 0


def test_clients_that_leave_free_every_page(server: Any) -> None:
    body = {"prompt": "the", "max_tokens": 370, "ignore_eos": True, "stream": True, "n": 8}
    for _ in range(3):
        with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
    server.wait_until(lambda: not server.engine._live)
    assert settled(server).pages_used == 0


class HealthyStreams:
    """Four streams that run again and again, each compared with what it gave alone."""

    def __init__(self, url: str) -> None:
        self._over = threading.Event()
        self._http = httpx.Client(base_url=url, timeout=120)
        self.rounds = 0
        self.wrong: list[str] = []
        self._alone = [self._run(number) for number in range(4)]
        self._threads = [threading.Thread(target=self._repeat, args=(number,)) for number in range(4)]

    def _run(self, number: int) -> str:
        body = {
            "prompt": f"the healthy stream {number}", "seed": number, "max_tokens": 120, "stream": True,
            "ignore_eos": True, "temperature": 0.9, "top_p": 0.95, "presence_penalty": 0.1,
        }  # fmt: skip
        answer = self._http.post("/v1/completions", json=body)
        events = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: {")]
        choices = [json.loads(event)["choices"][0] for event in events]
        return "".join(choice["text"] for choice in choices) + str(choices[-1]["finish_reason"])

    def _repeat(self, number: int) -> None:
        while not self._over.is_set():
            seen = self._run(number)
            self.rounds += 1
            if seen != self._alone[number]:
                self.wrong.append(seen)

    def __enter__(self) -> HealthyStreams:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(120)
        self._http.close()


CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
COMPLETION = {"prompt": "hi", "max_tokens": 1}
BIG = 2**70
SURROGATE = "a\ud800"
LIMITS = Limits()
WRONG_TYPES = [True, -7, 0.5, "x", [], [[1]], {"a": {"b": []}}, SURROGATE, BIG]

# (path, field, value, what the message must also hold: the limit)
OUT_OF_BOUNDS: list[tuple[str, str, Any, str]] = [
    *((path, *case) for path in ("chat", "text") for case in [
        ("temperature", -0.1, "0"), ("temperature", 1e9, "100"), ("top_p", 0, "0"), ("top_p", 1.01, "1"),
        ("top_k", -2, "-1"), ("top_k", BIG, ""), ("min_p", 1.5, "1"), ("min_p", -1, "0"),
        ("presence_penalty", 2.1, "2"), ("frequency_penalty", -2.1, "-2"), ("repetition_penalty", 0, "0"),
        ("repetition_penalty", 11, "10"), ("n", 0, "1"), ("n", LIMITS.n + 1, "16"), ("n", 10**9, "16"),
        ("n", BIG, ""), ("seed", 2**65, ""), ("seed", -(2**64), ""), ("max_tokens", -1, "1"),
        ("max_tokens", CONTEXT + 1, str(CONTEXT)), ("max_tokens", 10**12, ""), ("min_tokens", -1, "0"),
        ("min_tokens", 2, "1"), ("stop", [""], "1"), ("stop", ["x"] * 17, "16"), ("stop", "x" * 5000, "1024"),
        ("stop_token_ids", [10**7], ""), ("stop_token_ids", [-1], "0"), ("stop_token_ids", [1] * 300, "256"),
        ("allowed_token_ids", [10**7], ""), ("allowed_token_ids", [], ""), ("logit_bias", {"5": 101}, "100"),
        ("logit_bias", {"x": 1}, ""), ("logit_bias", {"99999999": 1}, ""), ("logit_bias", {"-1": 1}, ""),
        ("logit_bias", {str(i): 0 for i in range(2000)}, ""), ("model", "gpt-9", "tiny"),
        ("stream_options", {"include_usage": True}, "stream"),
    ]),
    ("chat", "messages", [], "1024"),
    ("chat", "messages", [{"role": "user", "content": "x"}] * 1025, "1024"),
    ("chat", "messages", [{"role": "user", "content": "x" * 2000}], str(CONTEXT - 1)),
    ("chat", "messages[0].content", [{"role": "user", "content": SURROGATE}], "surrogate"),
    ("chat", "messages[0].role", [{"role": "x" * 99, "content": "x"}], "user"),
    ("chat", "max_completion_tokens", CONTEXT + 1, str(CONTEXT)),
    ("chat", "max_completion_tokens", 0, "1"),
    ("chat", "top_logprobs", 21, "20"),
    ("chat", "top_logprobs", 3, "logprobs"),
    ("chat", "chat_template_kwargs", {str(i): i for i in range(40)}, "32"),
    ("text", "prompt", "", ""),
    ("text", "prompt", [], "one"),
    ("text", "prompt", "x" * 2000, str(CONTEXT - 1)),
    ("text", "prompt", [5] * CONTEXT, str(CONTEXT - 1)),
    ("text", "prompt", [10**7], ""),
    ("text", "prompt", ["x"] * 257, "256"),
    ("text", "prompt", SURROGATE, "surrogate"),
    ("text", "prompt", [SURROGATE], "surrogate"),
    ("text", "logprobs", 21, "20"),
    ("text", "logprobs", -1, "0"),
    ("text", "suffix", "end", ""),
]  # fmt: skip
PATHS = {"chat": ("/v1/chat/completions", CHAT), "text": ("/v1/completions", COMPLETION)}


def _post(http: httpx.Client, path: str, body: Any) -> httpx.Response:
    # By hand: json.dumps writes lone surrogates as escapes, as a hostile client would.
    data = json.dumps(body).encode()
    return http.post(path, content=data, headers={"content-type": "application/json"})


def _check(answer: httpx.Response, fields: tuple[str, ...], holds: str, shown: object) -> None:
    assert 400 <= answer.status_code < 500, (shown, answer.text[:300])
    detail = answer.json()["error"]
    said = f"{detail['param']} {detail['message']}"
    assert (detail["param"] or "").startswith(fields), (shown, detail)
    assert holds in said, (shown, detail)


def test_bad_values_are_refused_by_name_while_healthy_streams_run_on(server: Any) -> None:
    before = settled(server)
    with HealthyStreams(server.url) as healthy, httpx.Client(base_url=server.url, timeout=60) as http:
        for kind, field, value, holds in OUT_OF_BOUNDS:
            path, body = PATHS[kind]
            top = field.partition("[")[0]
            _check(_post(http, path, {**body, top: value}), (field,), holds, (kind, field, str(value)[:80]))
    assert healthy.wrong == []
    assert healthy.rounds >= 4
    assert settled(server).pages_total == before.pages_total


SHAPES = {
    "/v1/chat/completions": (ChatRequest, CHAT),
    "/v1/completions": (CompletionRequest, COMPLETION),
    "/tokenize": (TokenizeRequest, {"prompt": "x"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [5]}),
}


def _values(kind: Any) -> list[Any]:
    """All for a typed field; a few for one that takes any type (to be ignored, or refused whatever it is)."""
    return WRONG_TYPES[3:7] if kind in (Any, msgspec.Raw) else WRONG_TYPES


@pytest.mark.slow
def test_every_field_survives_every_type_while_healthy_streams_run_on(server: Any) -> None:
    """Nothing may answer 5xx, and a refusal names the field. Some values suit some fields: those may pass."""
    refused = 0
    with HealthyStreams(server.url) as healthy, httpx.Client(base_url=server.url, timeout=60) as http:
        for path, (shape, body) in SHAPES.items():
            for item in msgspec.structs.fields(shape):
                for value in _values(item.type):
                    answer = _post(http, path, {**body, item.encode_name: value})
                    if answer.status_code != 200:
                        refused += 1
                        same = ("prompt", "messages") if path == "/tokenize" else ()
                        _check(answer, (item.encode_name, *same), "", (path, item.name, value))
        for item in msgspec.structs.fields(ChatMessage):
            for value in _values(item.type):
                message = {"role": "user", "content": "x", item.encode_name: value}
                answer = _post(http, "/v1/chat/completions", {**CHAT, "messages": [message]})
                if answer.status_code != 200:
                    refused += 1
                    _check(answer, ("messages[0].", "messages"), "", (item.name, value))
    assert refused > 300
    assert healthy.wrong == []
    assert settled(server).pages_used == 0


@pytest.mark.parametrize("body", [{}, {"model": "tiny"}, [], "x", 5, None, {"prompt": None}, {"messages": None}])
def test_bodies_without_the_needed_field(server: Any, body: Any) -> None:
    with httpx.Client(base_url=server.url) as http:
        for path in SHAPES:
            answer = _post(http, path, body)
            assert 400 <= answer.status_code < 500
            assert answer.json()["error"]["type"] == "invalid_request_error"
