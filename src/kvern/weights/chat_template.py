"""Chat templates: conversation to prompt text, rendered in a process that can be killed.

A template is code from a model file. It runs in Jinja's immutable sandbox, in a worker process with little memory
and no environment, for a bounded time and output; a render costs one pipe round trip. Templates never come from
requests.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kvern.core.errors import InvalidRequest, ModelFileError
from kvern.weights.template_worker import MAX_FRAME_BYTES, RenderAnswer, RenderCall, WorkerSetup, write_frame
from kvern.weights.tokenizer import Tokenizer

MAX_TEMPLATE_CHARS = 256 * 1024
MAX_OUTPUT_CHARS = 4 << 20
WORKER_MEMORY_BYTES = 1 << 30
START_TIMEOUT_S = 30.0


class ChatTemplate:
    """One model's template. Threads may share it; renders run one at a time.

    ``variables`` are the strings the template may name (bos_token, eos_token, ...); ``clock`` gives seconds since
    the epoch for templates that print the date; ``timeout_s`` bounds one render.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.time,
        timeout_s: float = 1.0,
        max_output_chars: int = MAX_OUTPUT_CHARS,
    ) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ModelFileError(f"the chat template has {len(source)} characters (limit {MAX_TEMPLATE_CHARS})")
        self.source = source
        self._setup = WorkerSetup(source, dict(variables), timeout_s, max_output_chars, WORKER_MEMORY_BYTES)
        self._clock = clock
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None

    def check(self) -> None:
        """Start the worker and compile. Raises ModelFileError for a template that does not compile in time."""
        with self._lock:
            self._running_worker()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Prompt text of a conversation.

        Raises InvalidRequest (field ``messages``) when the template refuses it, fails, or passes a limit of time,
        memory or output.
        """
        arguments = {
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **(extra or {}),
        }
        with self._lock:
            answer = self._exchange(RenderCall(arguments, self._clock()))
        if answer.text is not None:
            return answer.text
        reason = "refuses this conversation" if answer.raised else "could not be rendered"
        raise InvalidRequest(
            f"the model's chat template {reason}: {answer.error}", field="messages", code="chat_template_error"
        )

    def close(self) -> None:
        """End the worker process."""
        with self._lock:
            self._stop()

    def _exchange(self, call: RenderCall) -> RenderAnswer:
        worker = self._running_worker()
        answer = self._ask(worker, call, self._setup.timeout_s + 0.5)
        if answer is None:
            self._stop()
            return RenderAnswer(error=f"it passed its limit of {self._setup.timeout_s:g} s or of memory")
        return answer

    def _running_worker(self) -> subprocess.Popen[bytes]:
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        self._stop()
        paths = [path for path in sys.path if path]
        self._worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "kvern.weights.template_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"},
            close_fds=True,
        )
        answer = self._ask(self._worker, self._setup, START_TIMEOUT_S)
        if answer is None or answer.error is not None:
            self._stop()
            reason = answer.error if answer else "compiling it passed a limit of time or memory"
            raise ModelFileError(f"the chat template does not compile: {reason}")
        return self._worker

    def _ask(
        self, worker: subprocess.Popen[bytes], question: WorkerSetup | RenderCall, timeout_s: float
    ) -> RenderAnswer | None:
        """One question, one answer; None when the worker died or stayed silent for ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        if worker.stdin is None or worker.stdout is None:
            return None
        try:
            write_frame(worker.stdin, question)
        except BrokenPipeError:
            return None
        head = _read_exactly(worker.stdout.fileno(), 4, deadline)
        size = int.from_bytes(head, "little") if head else 0
        if not 0 < size <= MAX_FRAME_BYTES:
            return None
        body = _read_exactly(worker.stdout.fileno(), size, deadline)
        return msgspec.msgpack.decode(body, type=RenderAnswer) if body else None

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.kill()
        worker.wait()
        for stream in (worker.stdin, worker.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # closing flushes what the dead worker never read


def _read_exactly(descriptor: int, size: int, deadline: float) -> bytes | None:
    """Read ``size`` bytes from a pipe, or None at its end or at the deadline (monotonic seconds)."""
    parts, missing = [], size
    while missing:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(descriptor, min(missing, 1 << 20)) if ready else b""
        if not part:
            return None
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def template_variables(tokenizer: Tokenizer) -> dict[str, str]:
    """The special-token strings a template may name."""
    named = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    return {name: tokenizer.token_text(token) for name, token in named.items() if token is not None}


def chat_template_from_gguf(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template inside a GGUF header; None when it has none (a base model)."""
    source = metadata.get("tokenizer.chat_template")
    return ChatTemplate(source, template_variables(tokenizer)) if isinstance(source, str) else None


TEMPLATE_DOCUMENTS = ("chat_template.jinja", "tokenizer_config.json")


def chat_template_from_folder(folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template of a Hugging Face folder: `chat_template.jinja`, or `chat_template` in tokenizer_config.json."""
    found = {name: folder / name for name in TEMPLATE_DOCUMENTS if (folder / name).is_file()}
    if "chat_template.jinja" in found:
        _check_size(found["chat_template.jinja"])
    documents = {name: file.read_bytes() for name, file in found.items()}
    return chat_template_from_documents(documents, tokenizer, str(folder))


def chat_template_from_documents(
    documents: Mapping[str, bytes], tokenizer: Tokenizer, where: str
) -> ChatTemplate | None:
    """The same from the bytes of those files; ``where`` is what errors begin with. Raises ModelFileError."""
    try:
        if "chat_template.jinja" in documents:
            source: Any = str(documents["chat_template.jinja"], "utf-8")
        else:
            source = json.loads(documents.get("tokenizer_config.json", b"{}")).get("chat_template")
    except (ValueError, AttributeError) as error:
        raise ModelFileError(
            f"{where}: its chat template or tokenizer_config.json cannot be read: {error}"
        ) from error
    if isinstance(source, list):  # several named ones
        source = next((entry.get("template") for entry in source if entry.get("name") == "default"), None)
    return ChatTemplate(source, template_variables(tokenizer)) if isinstance(source, str) else None


def chat_template_from_file(file: Path, tokenizer: Tokenizer) -> ChatTemplate:
    """A template the operator names (``--chat-template FILE``)."""
    _check_size(file)
    return ChatTemplate(file.read_text(encoding="utf-8"), template_variables(tokenizer))


def _check_size(file: Path) -> None:
    if file.stat().st_size > 4 * MAX_TEMPLATE_CHARS:
        raise ModelFileError(f"{file} is too large for a chat template (limit {MAX_TEMPLATE_CHARS} characters)")
