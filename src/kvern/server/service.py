"""What every route shares: the engine, the tokenizer, the template, the options, and the ids it hands out."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from dataclasses import dataclass, field

from kvern import __version__
from kvern.core.errors import InvalidRequest
from kvern.core.ports import EngineClient
from kvern.sampling_params import ModelLimits
from kvern.server.metrics import ServerMetrics
from kvern.server.options import ServerOptions
from kvern.weights.chat_template import ChatTemplate
from kvern.weights.tokenizer import Tokenizer

_THREAD_ABOVE_CHARS = 4096  # shorter texts are tokenised at once; a thread would cost more


@dataclass(frozen=True)
class Service:
    client: EngineClient
    tokenizer: Tokenizer
    template: ChatTemplate | None
    options: ServerOptions
    metrics: ServerMetrics
    started_at: int  # seconds since the epoch
    long_texts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))  # tokenised at once
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def next_id(self) -> int:
        """The id of one sequence. Clients never choose it."""
        return next(self.numbers)

    def answer_id(self, kind: str) -> str:
        return f"{kind}-{secrets.token_hex(12)}"

    def model_limits(self) -> ModelLimits:
        info = self.client.info
        return ModelLimits(info.vocab_size, info.max_context, self.tokenizer.eos_ids)

    def fingerprint(self) -> str:
        """Equal fingerprints and equal seeds give equal tokens."""
        info = self.client.info
        return f"kvern-{__version__}-{info.isa}-{info.weight_format}-{info.kv_format}"

    def check_model(self, name: str | None) -> str:
        """The model's name for the answer. Raises InvalidRequest (404) for a name that is not served."""
        names = self.options.model_names
        if name is None:
            return names[0]
        if name not in names:
            raise InvalidRequest(
                f"the model {name[:100]!r} does not exist; served: {', '.join(names)}",
                field="model",
                code="model_not_found",
            )
        return name

    async def encode_prompt(self, text: str, field: str, *, add_special: bool) -> list[int]:
        """Like ``encode``; a text that cannot fit the context is refused before any work. ``field`` names it."""
        context = self.client.info.max_context
        if len(text) > _THREAD_ABOVE_CHARS and len(text) > context * self.tokenizer.longest_token_bytes:
            raise InvalidRequest(
                f"{field}: {len(text)} characters are more than the context of {context} tokens can hold; "
                f"at most {context - 1} tokens fit with one token of output",
                field=field,
                code="context_length_exceeded",
            )
        return await self.encode(text, field, add_special=add_special)

    async def encode(self, text: str, field: str, *, add_special: bool) -> list[int]:
        """Token ids of a client's text; a long one is cut up in a thread. Raises InvalidRequest naming ``field``."""
        try:
            if len(text) <= _THREAD_ABOVE_CHARS:
                return self.tokenizer.encode(text, add_special)
            async with self.long_texts:
                return await asyncio.to_thread(self.tokenizer.encode, text, add_special)
        except InvalidRequest as error:
            raise InvalidRequest(f"{field}: {error}", field=field, code=error.code) from error
