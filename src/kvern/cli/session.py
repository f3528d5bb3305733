"""A model in this process for commands that print as tokens come; its event loop runs in a thread of its own."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import Any, TypeVar

from kvern.llm import AsyncLLM, RequestOutput

T = TypeVar("T")
Source = Callable[[AsyncLLM], AsyncIterator[RequestOutput]]


class Session:
    """``with Session(model, **options) as session: for part in session.stream(lambda llm: llm.generate(...))``.

    Ctrl-C while ``stream`` waits raises KeyboardInterrupt there and aborts the request, not the model. Raises what
    ``AsyncLLM`` raises.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kvern-session", daemon=True)
        self.llm = AsyncLLM(model, **options)

    def __enter__(self) -> Session:
        self._thread.start()
        try:
            self._wait(self.llm.start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait(self.llm.close())
        self._end()

    def stream(self, source: Source) -> Iterator[RequestOutput]:
        """What ``source`` yields, as it comes. Leaving the iterator aborts the request."""
        arrived: queue.SimpleQueue[RequestOutput | Exception | None] = queue.SimpleQueue()

        async def follow() -> None:
            try:
                async with aclosing(source(self.llm)) as parts:  # type: ignore[type-var]
                    async for part in parts:
                        arrived.put(part)
                arrived.put(None)
            except Exception as error:
                arrived.put(error)

        running = asyncio.run_coroutine_threadsafe(follow(), self._loop)
        try:
            while (item := arrived.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            running.cancel()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
