"""The bytes of streamed answers (golden transcripts), comments in silence, errors in a stream, clients that leave."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

GOLDEN = Path(__file__).parent / "golden"
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "h\u00e9"}], "seed": 1}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat_usage": ("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}}),
    "chat_logprobs": ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 1, "max_tokens": 2}),
    "chat_stop": ("/v1/chat/completions", {**CHAT, "stop": ["er"]}),
    "chat_two_choices": ("/v1/chat/completions", {**CHAT, "n": 2, "max_tokens": 2}),
    "completion": ("/v1/completions", {"model": "demo", "prompt": "x\u00e9", "max_tokens": 4}),
    "completion_echo_logprobs": (
        "/v1/completions",
        {"model": "demo", "prompt": "xy", "max_tokens": 1, "echo": True, "logprobs": 1},
    ),
    "completion_usage": (
        "/v1/completions",
        {"model": "demo", "prompt": "x", "max_tokens": 2, "stream_options": {"include_usage": True}},
    ),
    "error_in_stream": ("/v1/completions", {"model": "demo", "prompt": "fail now", "max_tokens": 4}),
}


@pytest.mark.parametrize("name", CASES)
def test_golden_transcripts(server: Any, name: str) -> None:
    """To renew one: delete the file and run the test; it fails once, and writes what it saw."""
    path, body = CASES[name]
    answer = httpx.post(server.url + path, json={**body, "stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    seen = re.sub(r'"id":"(chatcmpl|cmpl)-[0-9a-f]{24}"', r'"id":"\1-ID"', answer.text)
    seen = re.sub(r'"system_fingerprint":"kvern-[^"]*"', '"system_fingerprint":"FINGERPRINT"', seen)
    if "two_choices" in name:  # choices run side by side; only each one's own order is fixed
        events = seen.split("\n\n")
        seen = "\n\n".join(
            sorted(events[:-2], key=lambda event: json.loads(event[6:])["choices"][0]["index"]) + events[-2:]
        )
    file = GOLDEN / f"{name}.txt"
    if not file.exists():
        file.write_text(seen, encoding="utf-8")
        pytest.fail(f"{file.name} did not exist; written from this answer")
    assert seen == file.read_text(encoding="utf-8")


def test_silence_is_filled_with_comments(serve: Any) -> None:
    with (
        serve(ping_interval_s=0.05) as one,
        httpx.stream(
            "POST", one.url + "/v1/completions", json={"model": "demo", "prompt": "slow now", "stream": True}
        ) as answer,
    ):
        seen = ""
        for part in answer.iter_text():
            seen += part
            if seen.count(": ping\n\n") >= 3:
                break
        assert seen.index('"text":"s"') < seen.index(": ping")


def test_a_client_that_leaves_a_stream_is_freed(server: Any) -> None:
    body = {"model": "demo", "prompt": "slow now", "stream": True, "n": 3}
    with httpx.stream("POST", server.url + "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()  # kept: dropping it would close the connection
        assert next(lines).startswith("data: ")
        assert len(server.engine.live) == 3
    server.wait_until(lambda: not server.engine.live)


def _head(size: int) -> bytes:
    """Of a POST whose body has ``size`` bytes."""
    lines = ("POST /v1/completions HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {size}")
    return "\r\n".join((*lines, "", "")).encode()


def test_a_client_that_leaves_before_the_first_token_is_freed(server: Any) -> None:
    """Also without streaming: the connection is watched while the engine works."""
    for stream in (False, True):
        connection = socket.create_connection(("127.0.0.1", server.port))
        body = json.dumps({"model": "demo", "prompt": "slow now", "stream": stream, "max_tokens": 9}).encode()
        connection.sendall(_head(len(body)) + body)
        server.wait_until(lambda: len(server.engine.live) == 1)
        connection.close()
        server.wait_until(lambda: not server.engine.live)


def test_a_client_that_leaves_inside_its_body_is_forgotten(server: Any) -> None:
    before = len(server.engine.requests)
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(_head(500) + b"{")
    connection.close()
    assert httpx.get(server.url + "/livez").status_code == 200
    assert len(server.engine.requests) == before


def test_a_reader_that_never_reads_does_not_block_others(server: Any) -> None:
    lazy = socket.create_connection(("127.0.0.1", server.port))
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    body = json.dumps(
        {"model": "demo", "prompt": "x" * 9, "stream": True, "max_tokens": 500, "logprobs": 20}
    ).encode()
    lazy.sendall(_head(len(body)) + body)
    answer = httpx.post(server.url + "/v1/completions", json={"model": "demo", "prompt": "fine", "max_tokens": 4})
    assert answer.json()["choices"][0]["text"] == "fine"
    lazy.close()
    server.wait_until(lambda: not server.engine.live)
