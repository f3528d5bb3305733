"""``kvern serve`` as a process: what it says, how it ends, and what it refuses before it loads."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest


def complete(url: str, **fields: Any) -> httpx.Response:
    body = {"prompt": "hello", "max_tokens": 8, "temperature": 0, "ignore_eos": True, **fields}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


@pytest.fixture(scope="module")
def served(serving: Any, tiny_model: Path, chat_template: Path) -> Any:
    flags = ("--served_model_name", "tiny", "--threads", 1, "-c", 512, "--chat-template", chat_template)
    with serving(tiny_model, *flags) as running:
        yield running


def test_it_serves_under_the_name_it_was_given(served: Any) -> None:
    models = httpx.get(f"{served.url}/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["tiny"]
    answer = complete(served.url, model="tiny").json()
    assert answer["usage"]["completion_tokens"] == 8


def test_it_chats_with_the_template_it_was_given(served: Any) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text


def test_the_memory_plan_is_printed(served: Any) -> None:
    text = served.log.read_text()
    assert "weights" in text.lower() and "kv" in text.lower()
    assert re.search(r"\d+(\.\d+)? [KMG]iB", text)


def test_the_event_log_is_kept(served: Any, environment: dict[str, str]) -> None:
    assert list((Path(environment["XDG_STATE_HOME"]) / "kvern" / "events").glob("*.kvlog"))


def test_sigterm_lets_a_running_answer_finish_and_leaves_no_process(serving: Any, tiny_model: Path) -> None:
    with serving(tiny_model, "--threads", 1, "-c", 512) as running:
        family = psutil.Process(running.process.pid).children(recursive=True)
        assert family  # the engine is a process of its own
        lines: list[str] = []
        began = threading.Event()

        def read() -> None:
            body = {"prompt": "hello", "max_tokens": 300, "ignore_eos": True, "stream": True}
            with httpx.stream("POST", f"{running.url}/v1/completions", json=body, timeout=60) as answer:
                for line in answer.iter_lines():
                    lines.append(line)
                    began.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert began.wait(60)
        running.process.send_signal(signal.SIGTERM)
        reader.join(60)
        assert running.process.wait(60) == 0
        assert [line for line in lines if line][-1] == "data: [DONE]"
        _, alive = psutil.wait_procs(family, timeout=20)
        assert alive == []


def test_sigint_ends_it_as_well(serving: Any, tiny_model: Path) -> None:
    with serving(tiny_model, "--threads", 1) as running:
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(60) == 0


def test_a_key_is_asked_for_when_one_is_set(serving: Any, tiny_model: Path) -> None:
    with serving("-m", tiny_model, "--api-key", "secret", "--alias", "t", "--threads", 1) as running:
        assert httpx.get(f"{running.url}/v1/models").status_code == 401
        headers = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{running.url}/v1/models", headers=headers).json()["data"][0]["id"] == "t"


def test_a_taken_port_is_refused_before_loading(kvern: Any, tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = kvern("serve", tiny_model, "--port", taken.getsockname()[1])
    assert done.returncode == 1
    assert "--port" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["no-such-model"], "no-such-model"),
        ([], "MODEL"),
        (["{model}", "--chat-template", "no-such-file"], "no-such-file"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(
    kvern: Any, tiny_model: Path, arguments: list[str], named: str
) -> None:
    done = kvern("serve", "--port", 0, *(item.format(model=tiny_model) for item in arguments))
    assert done.returncode == 1
    assert named in done.stderr and "Traceback" not in done.stderr


def test_too_little_memory_is_refused_with_the_value_that_fits(kvern: Any, serving: Any, tiny_model: Path) -> None:
    done = kvern("serve", tiny_model, "--port", 0, "--memory", "1MiB", "--threads", 1)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    fitting = re.search(r"\((\d+) bytes\) are enough", done.stderr)
    assert fitting is not None, done.stderr
    with serving(tiny_model, "--memory", fitting.group(1), "--threads", 1) as running:
        assert complete(running.url).status_code == 200


def test_bench_serve_measures_it_and_finds_no_hits_unless_prompts_repeat(kvern: Any, served: Any) -> None:
    flags = ["--url", served.url, "--num-prompts", 6, "--request-rate", 50, "--input-len", 130, "--output-len", 4]
    flags += ["--vocab-size", 299, "--json"]
    salted = json.loads(kvern("bench", "serve", *flags).stdout)
    assert (salted["requests"], salted["failed"], salted["withheld"]) == (6, 0, None)
    assert (salted["prompt_tokens"], salted["output_tokens"], salted["hit_rate"]) == (780, 24, 0.0)
    assert salted["output_per_s"] > 0
    first, second = (json.loads(kvern("bench", "serve", *flags, "--no-salt").stdout) for _ in range(2))
    assert first["hit_rate"] == 0.0
    assert second["hit_rate"] == pytest.approx(128 / 130)  # the two whole pages of each prompt
