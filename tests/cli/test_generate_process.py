"""``generate``, ``chat`` and ``bench offline`` as processes on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GREEDY = ("--temperature", 0, "--max-tokens", 12, "--ignore-eos", "--threads", 1)


def test_text_and_json_say_the_same_and_repeat(kvern: Any, tiny_model: Path) -> None:
    plain = kvern("generate", tiny_model, "--prompt", "hello", *GREEDY)
    assert plain.returncode == 0, plain.stderr
    described = json.loads(kvern("generate", tiny_model, "--prompt", "hello", *GREEDY, "--json").stdout)
    assert plain.stdout == described["text"] + "\n"
    assert len(described["token_ids"]) == 12
    assert described["finish_reason"] == "length"


def test_one_seed_gives_one_answer_and_another_another(kvern: Any, tiny_model: Path) -> None:
    def sampled(seed: int, threads: int) -> list[int]:
        flags = ("--temperature", 1.5, "--seed", seed, "-n", 16, "--ignore-eos", "--threads", threads, "--json")
        tokens: list[int] = json.loads(kvern("generate", tiny_model, "-p", "hello", *flags).stdout)["token_ids"]
        return tokens

    assert sampled(1, 1) == sampled(1, 2) != sampled(2, 1)


def test_prompts_come_from_files_and_standard_input(kvern: Any, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("hello")
    wanted = kvern("generate", tiny_model, "--prompt", "hello", *GREEDY).stdout
    assert kvern("generate", tiny_model, "--file", file, *GREEDY).stdout == wanted
    assert kvern("generate", tiny_model, "--file", "-", *GREEDY, text="hello").stdout == wanted


def test_back_ends_agree_on_a_greedy_answer(kvern: Any, tiny_model: Path) -> None:
    """Both are run whole through the command; the first token is far from a tie on this model and seed."""
    flags = ("--prompt", "hello", "--temperature", 0, "-n", 1, "--ignore-eos", "--json", "--weight-format", "f32")
    answers = [
        json.loads(kvern("generate", tiny_model, *flags, "--backend", name).stdout)["token_ids"]
        for name in ("cpu", "reference")
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--prompt", "hello", "--temperature", "-1"), "temperature"),
        (("--prompt", "hello", "--top-p", "2"), "top_p"),
        (("--prompt", "hello", "--max-tokens", "100000"), "max_tokens"),
        (("--file", "no-such-file"), "no-such-file"),
    ],
)
def test_a_bad_request_is_told_in_one_line(kvern: Any, tiny_model: Path, flags: tuple[str, ...], named: str) -> None:
    done = kvern("generate", tiny_model, *flags, "--threads", 1)
    assert done.returncode == 1
    assert named in done.stderr and "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_error(tiny_model: Path, environment: dict[str, str]) -> None:
    flags = ["--prompt", "hello", "--max-tokens", "400", "--ignore-eos", "--threads", "1"]
    command = [sys.executable, "-m", "kvern.cli.main", "generate", str(tiny_model), *flags]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        said = process.stderr.read().decode()
    assert "Traceback" not in said
    assert process.returncode == 0


def test_a_conversation_goes_on(kvern: Any, tiny_model: Path, chat_template: Path) -> None:
    flags = ("--chat-template", chat_template, *GREEDY)
    once = kvern("chat", tiny_model, *flags, text="hello\n")
    assert once.returncode == 0, once.stderr
    both = kvern("chat", tiny_model, *flags, text="hello\n\nhello\n/new\nhello\n").stdout
    assert both.startswith(once.stdout)
    assert both.endswith(once.stdout)  # after /new the same question has the same answer
    assert len(both) > 2 * len(once.stdout)


def test_bench_offline_counts_and_shows_the_hit_rate(kvern: Any, tiny_model: Path) -> None:
    shape = ("--num-prompts", 5, "--input-len", 100, "--output-len", 6, "--threads", 1)
    done = kvern("bench", "offline", tiny_model, *shape, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["requests"], result["prompt_tokens"], result["output_tokens"]) == (5, 500, 30)
    assert result["hit_rate"] == 0.0
    assert result["output_per_s"] == pytest.approx(30 / result["seconds"])
