"""The process in which chat templates run: sandboxed, memory-limited, and gone when a render takes too long.

Started by `chat_template.py` as ``python -m kvern.weights.template_worker``. Frames on stdin and stdout are a 4-byte
little-endian length and a msgpack value. The first frame is a ``WorkerSetup``; its answer says whether the template
compiles. Every later frame is a ``RenderCall``. A render that outlives its time ends the process (SIGALRM), even
inside one long C call, and even when the parent has died.
"""

from __future__ import annotations

import importlib
import json
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import IO, Any, NoReturn

import msgspec

MAX_FRAME_BYTES = 64 << 20


class WorkerSetup(msgspec.Struct, array_like=True):
    source: str
    variables: dict[str, str]  # bos_token, eos_token, ...
    timeout_s: float
    max_output_chars: int
    memory_bytes: int  # address space


class RenderCall(msgspec.Struct, array_like=True):
    arguments: dict[str, Any]
    now_s: float  # seconds since the epoch, for strftime_now


class RenderAnswer(msgspec.Struct, array_like=True):
    text: str | None = None
    error: str | None = None
    raised: bool = False  # the template itself said so, with raise_exception


class _RaisedByTemplate(Exception):
    """The template called raise_exception: the conversation does not suit it."""


def write_frame(stream: IO[bytes], value: object) -> None:
    data = msgspec.msgpack.encode(value)
    stream.write(len(data).to_bytes(4, "little") + data)
    stream.flush()


def _read_frame(stream: IO[bytes]) -> bytes | None:
    head = stream.read(4)
    if len(head) < 4:
        return None
    return stream.read(int.from_bytes(head, "little"))


def compile_template(source: str, now_s: Callable[[], float]) -> Any:
    """Compile as Hugging Face `transformers` does: immutable sandbox, trimmed blocks, its filters and functions."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """`{% generation %}` marks the assistant's own words for training; here its body is just rendered."""

        def __init__(self, environment: Any) -> None:
            super().__init__(environment)
            self.tags = {"generation"}

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.fromtimestamp(now_s()).strftime(form)
    return environment.from_string(source)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    allowed = {key: options[key] for key in ("indent", "separators", "sort_keys") if key in options}
    return json.dumps(value, ensure_ascii=ensure_ascii, **allowed)


def _raise_exception(message: str) -> NoReturn:
    raise _RaisedByTemplate(str(message))


def _bounded(pieces: Any, max_chars: int) -> str:
    parts, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > max_chars:
            raise ValueError(f"the output is over {max_chars} characters")
        parts.append(piece)
    return "".join(parts)


def _limit_process(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(work: Callable[[], str], timeout_s: float) -> RenderAnswer:
    """Run ``work`` under the alarm; every failure becomes an answer, never a traceback with our paths in it."""
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        return RenderAnswer(text=work())
    except _RaisedByTemplate as error:
        return RenderAnswer(error=str(error)[:500], raised=True)
    except MemoryError:
        return RenderAnswer(error="out of memory")
    except RecursionError:
        return RenderAnswer(error="recursion too deep")
    except Exception as error:
        return RenderAnswer(error=f"{type(error).__name__}: {error}"[:500])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    frame = _read_frame(requests)
    if frame is None:
        return
    setup = msgspec.msgpack.decode(frame, type=WorkerSetup)
    now = [0.0]
    compiled: list[Any] = []

    def compile_source() -> str:
        compiled.append(compile_template(setup.source, lambda: now[0]))
        return ""

    importlib.import_module("jinja2.sandbox")  # before the clock runs: a cold disk is not the template's fault

    _limit_process(setup.memory_bytes)
    write_frame(answers, _answer(compile_source, setup.timeout_s))
    while compiled and (frame := _read_frame(requests)) is not None:
        call = msgspec.msgpack.decode(frame, type=RenderCall)
        now[0] = call.now_s
        values = {**setup.variables, **call.arguments}

        def render(values: dict[str, Any] = values) -> str:
            return _bounded(compiled[0].generate(**values), setup.max_output_chars)

        answer = _answer(render, setup.timeout_s)
        write_frame(answers, answer)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes our stdin
    _serve(sys.stdin.buffer, sys.stdout.buffer)
