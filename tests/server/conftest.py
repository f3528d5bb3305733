"""A real HTTP server over a small deterministic engine, for tests of the protocol."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvern.core.errors import EngineDead, InvalidRequest, Overloaded
from kvern.core.events import Delta
from kvern.core.plan import TokenLogprobs
from kvern.core.ports import EngineInfo, EngineStats
from kvern.core.request import Request
from kvern.server.app import make_app
from kvern.server.listen import make_server
from kvern.server.options import ServerOptions
from kvern.weights.chat_template import ChatTemplate, template_variables
from kvern.weights.token_table import byte_alphabet
from kvern.weights.tokenizer import Tokenizer
from kvern.weights.tokenizer_gguf import tokenizer_from_gguf

SPECIAL = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MAX_CONTEXT = 512


def byte_tokenizer() -> Tokenizer:
    """256 byte tokens, one merged token, two special ones."""
    texts = [*byte_alphabet(), "ab", *SPECIAL]
    return tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": texts,
            "tokenizer.ggml.token_type": [1] * 257 + [3, 3],
            "tokenizer.ggml.merges": ["a b"],
            "tokenizer.ggml.bos_token_id": 257,
            "tokenizer.ggml.eos_token_id": 258,
        }
    )


class RepeatingEngine:
    """Says its prompt over and over, from position ``choice`` on. Some first words ask for trouble.

    "slow": three tokens, then silence until the client leaves. "fail": the sequence fails after two tokens.
    "busy", "dead", "refused": the errors of these names at once. "burst": three tokens a delta.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.live: set[int] = set()
        self.aborted: list[int] = []
        self.requests: list[Request] = []
        self.is_alive = True

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            model="repeating",
            vocab_size=self.tokenizer.vocab_size,
            max_context=MAX_CONTEXT,
            page_tokens=64,
            pages_total=100,
            max_running=8,
            weight_format="f32",
            kv_format="f32",
            isa="none",
            threads=1,
            deterministic=True,
            resident_bytes=1000,
        )

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        return None

    def alive(self) -> bool:
        return self.is_alive

    async def stats(self) -> EngineStats:
        return EngineStats(running=len(self.live), pages_used=2, pages_total=100, prompt_tokens=7)

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        self.requests.append(request)
        word = self._first_word(request)
        if word == "busy":
            raise Overloaded("the queue is full", retry_after_s=2.5)
        if word == "dead":
            raise EngineDead("gone")
        if word == "refused":
            raise InvalidRequest("the prompt does not fit the pool", field="prompt", code="out_of_range")
        self.live.add(request.id)
        over = False
        try:
            async for delta in self._deltas(request, word):
                over = delta.finish is not None
                yield delta
                await asyncio.sleep(0)
        finally:
            self.live.discard(request.id)
            if not over:
                self.aborted.append(request.id)

    def _first_word(self, request: Request) -> str:
        text = self.tokenizer.decode(request.prompt, skip_special=False)
        return text.replace("<|im_start|>user\n", "").split()[0] if text.split() else ""

    async def _deltas(self, request: Request, word: str) -> AsyncIterator[Delta]:
        sampling, prompt = request.sampling, request.prompt
        size = 3 if word == "burst" else 1
        for done in range(0, sampling.max_tokens, size):
            if word == "slow" and done >= 3:
                await asyncio.Event().wait()
            if word == "fail" and done >= 2:
                yield Delta(request.id, finish="error", error="the logits are not finite")
                return
            last = min(done + size, sampling.max_tokens)
            tokens = tuple(prompt[(place + sampling.choice) % len(prompt)] for place in range(done, last))
            stopped = next((place for place, token in enumerate(tokens) if token in sampling.stop_token_ids), None)
            tokens = tokens if stopped is None else tokens[: stopped + 1]
            finish = "stop" if stopped is not None else "length" if last == sampling.max_tokens else None
            yield Delta(
                request.id,
                tokens,
                logprobs=self._chances(tokens, sampling.logprobs),
                prompt_logprobs=self._prompt_chances(request) if done == 0 else (),
                finish=finish,
                stop_token=tokens[-1] if stopped is not None else None,
                cached_tokens=len(prompt) // 2 if done == 0 else 0,
            )
            if finish is not None:
                return

    def _chances(self, tokens: tuple[int, ...], top: int | None) -> tuple[TokenLogprobs, ...]:
        if top is None:
            return ()
        others = tuple((token, -1.0 - token) for token in range(top))
        return tuple(TokenLogprobs(token, -0.5, 1, ((token, -0.5), *others)[:top]) for token in tokens)

    def _prompt_chances(self, request: Request) -> tuple[TokenLogprobs | None, ...]:
        if request.sampling.prompt_logprobs is None:
            return ()
        return (None, *self._chances(request.prompt[1:], request.sampling.prompt_logprobs))


class RunningServer:
    """A server in a thread of its own."""

    def __init__(self, engine: Any, app: Any) -> None:
        self.engine, self.app = engine, app
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = make_server(app)
        self._ready = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, args=(listener,), daemon=True)
        self._thread.start()
        assert self._ready.wait(60)

    def _run(self, listener: socket.socket) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self.engine.start()
            serving = asyncio.create_task(self._server.serve(sockets=[listener]))
            self._ready.set()
            await serving
            await self.engine.close()

        asyncio.run(serve())

    def wait_until(self, true: Callable[[], bool], seconds: float = 20.0) -> None:
        """Poll a condition inside the server's loop; fail when it stays false."""

        async def poll() -> None:
            async with asyncio.timeout(seconds):
                while not true():
                    await asyncio.sleep(0.005)

        assert self.loop is not None
        asyncio.run_coroutine_threadsafe(poll(), self.loop).result(seconds + 5)

    def ask(self, coroutine: Any) -> Any:
        """Run a coroutine in the server's loop."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)


@contextmanager
def running(*, template: str | None = CHATML, **options: Any) -> Iterator[RunningServer]:
    tokenizer = byte_tokenizer()
    chat = None if template is None else ChatTemplate(template, template_variables(tokenizer))
    engine = RepeatingEngine(tokenizer)
    settings: dict[str, Any] = {"model_names": ("demo", "alias"), "now": lambda: 1_700_000_000.0, **options}
    server = RunningServer(engine, make_app(engine, tokenizer, chat, ServerOptions(**settings)))
    try:
        yield server
    finally:
        server.close()
        if chat is not None:
            chat.close()


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server with default options; its engine's live set must be empty after every module."""
    with running() as one:
        yield one
        one.wait_until(lambda: not one.engine.live)


@pytest.fixture(scope="session")
def run_server() -> Any:
    """Run any engine client and app; the caller closes what it gets."""
    return RunningServer


@pytest.fixture
def serve() -> Any:
    """A context manager that runs a server with options of one's own."""
    return running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Any]:
    """The official client."""
    import openai

    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made
