"""Log-probabilities in the two shapes that clients know: chat's list of tokens, and completions' columns."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

import msgspec

from kvern.core.plan import TokenLogprobs
from kvern.weights.tokenizer import Tokenizer


class TokenChance(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TokenChance]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatTokenLogprob]
    refusal: None = None


def _chance(tokenizer: Tokenizer, token: int, logprob: float) -> TokenChance:
    data = tokenizer.token_bytes(token)
    return TokenChance(data.decode("utf-8", "replace"), logprob, list(data))


def chat_logprobs(tokenizer: Tokenizer, found: Iterable[TokenLogprobs], top: int) -> ChatLogprobs:
    """``top`` most likely tokens beside each chosen one (0: none)."""
    content = []
    for item in found:
        chosen = _chance(tokenizer, item.token, item.logprob)
        others = [_chance(tokenizer, token, logprob) for token, logprob in item.top[:top]]
        content.append(ChatTokenLogprob(chosen.token, chosen.logprob, chosen.bytes, others))
    return ChatLogprobs(content)


class CompletionLogprobs(msgspec.Struct):
    """Columns with one row per token. The first prompt token of an echo has no logprob."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionColumns:
    """Builds the columns of one answer, chunk by chunk; offsets count characters of the whole text."""

    def __init__(self, tokenizer: Tokenizer, top: int) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def add(self, tokens: Sequence[int], found: Sequence[TokenLogprobs | None]) -> CompletionLogprobs:
        """Rows for ``tokens``; ``found`` may be shorter (rows without logprobs)."""
        rows = CompletionLogprobs([], [], [], [])
        for index, token in enumerate(tokens):
            item = found[index] if index < len(found) else None
            rows.text_offset.append(self._offset)
            rows.tokens.append(self._name(token))
            rows.token_logprobs.append(None if item is None else item.logprob)
            rows.top_logprobs.append(None if item is None else self._most_likely(item))
            self._offset += len(self._utf8.decode(self._tokenizer.token_bytes(token)))
        return rows

    def _most_likely(self, item: TokenLogprobs) -> dict[str, float]:
        return {self._name(token): logprob for token, logprob in item.top[: self._top]}

    def _name(self, token: int) -> str:
        """The token's text, or its bytes, spelled out, when they are not text by themselves (so names stay apart)."""
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
