"""The README's examples, run as they stand, on the demo model where it has been fetched."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvern.weights import hub

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CURL = re.search(r"    curl (http\S+) (.*?)\n\n", README, re.DOTALL)
needs_model = pytest.mark.skipif(hub.cached("smollm2") is None, reason="kvern pull smollm2 has not been run")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=120)


@needs_model
def test_the_python_example_prints_a_continuation() -> None:
    done = run_python(PYTHON[1])
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 5


@needs_model
def test_the_client_examples_get_an_answer(serving: Any) -> None:
    """curl's is sent by the OpenAI client's own HTTP library, so that curl need not be there."""
    assert CURL is not None
    words = shlex.split(CURL[2].replace("\\\n", " "))
    body = json.loads(words[words.index("-d") + 1])
    with serving(hub.cached("smollm2"), "--served-model-name", "smollm2", "-c", 512) as served:
        answered = run_python(PYTHON[0].replace("http://127.0.0.1:8000", served.url))
        assert answered.returncode == 0, answered.stderr
        assert len(answered.stdout.split()) > 5
        send = f"import httpx; r = httpx.post({CURL[1].replace('http://127.0.0.1:8000', served.url)!r}, json={body!r}"
        done = run_python(send + ", timeout=60); print(r.status_code, r.json()['choices'][0]['message']['content'])")
    assert done.stdout.startswith("200 "), done.stdout + done.stderr


def test_the_readme_has_the_examples_that_are_run() -> None:
    assert len(PYTHON) == 2 and "openai" in PYTHON[0] and "LLM" in PYTHON[1]
    assert CURL is not None


def test_every_page_that_the_readme_names_is_there() -> None:
    root = Path(__file__).resolve().parents[2]
    named = set(re.findall(r"\]\(([\w./-]+)\)", README)) | set(re.findall(r"`(tests/\w+)`", README))
    assert len(named) > 5
    assert {name for name in named if not (root / name).exists()} == set()
