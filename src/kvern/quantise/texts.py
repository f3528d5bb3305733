"""Calibration and held-out texts as token windows: from a text, or written by the model itself."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from kvern.core.errors import ConfigError
from kvern.runtime.device import PAGE_TOKENS, Device, StepBatch
from kvern.weights.tokenizer import Tokenizer

WINDOW = 512  # tokens of one calibration text
HELD_OUT_WINDOW, HELD_OUT_WINDOWS, SCORED_FROM = 768, 2, 256
Windows = NDArray[np.int32]


def windows(tokenizer: Tokenizer, text: str, length: int, count: int) -> Windows:
    """At most ``count`` runs of ``length`` tokens from the start of ``text``, each after the model's start tokens.

    A text too short for one is one shorter window. int32 [texts, length]. Raises ConfigError below 16 tokens.
    """
    prefix = tokenizer.encode("")
    own = length - len(prefix)
    limit = count * own * tokenizer.longest_token_bytes
    ids = tokenizer.encode(text[:limit], add_special=False, parse_special=False)[: count * own]
    if len(ids) < 16:
        raise ConfigError(f"the text has only {len(ids)} tokens; at least 16 are needed")
    own = min(own, len(ids))
    found = [prefix + ids[begin : begin + own] for begin in range(0, len(ids) - own + 1, own)]
    return np.array(found, np.int32)


def held_out_text() -> str:
    """The English text that reports are measured on unless another is given; never used for calibration."""
    return (resources.files(__package__) / "held_out.txt").read_text(encoding="utf-8")


def written_by(
    device: Device, tokenizer: Tokenizer, shape: tuple[int, int], seed: int, tick: Callable[[int, int], None]
) -> Windows:
    """int32 of ``shape`` (texts, length) that the model itself writes: each text begins with a random ordinary token
    and goes on by sampling at temperature 1.

    The device needs ``texts * ceil(length / 64)`` pages, and rows for all texts.
    """
    texts, length = shape
    draw = np.random.default_rng(seed)
    prefix = tokenizer.encode("")
    special = np.array([tokenizer.is_special(token) for token in range(tokenizer.vocab_size)])
    out = np.zeros(shape, np.int32)
    out[:, : len(prefix)] = prefix
    out[:, len(prefix)] = draw.choice(np.flatnonzero(~special), texts)
    for position in range(length - 1):
        logits = _step(device, out[:, position], position, length)
        if position + 1 > len(prefix):
            logits[:, : special.size][:, special] = -np.inf  # the text goes on where it would have ended
            logits[:, special.size :] = -np.inf  # padding of the vocabulary
            out[:, position + 1] = (logits + draw.gumbel(size=logits.shape)).argmax(axis=1)
        tick(position + 2, length)
    return out


def _step(device: Device, tokens: NDArray[np.int32], position: int, length: int) -> NDArray[np.float32]:
    """One token of each text; each has pages of its own."""
    texts, each = tokens.size, -(-length // PAGE_TOKENS)
    batch = StepBatch(
        tokens=np.ascontiguousarray(tokens, np.int32),
        positions=np.full(texts, position, np.int32),
        row_begin=np.arange(texts + 1, dtype=np.int32),
        unit_begin=np.zeros(texts, np.int32),
        unit_end=np.full(texts, device.units, np.int32),
        block_table=np.arange(texts * each, dtype=np.int32).reshape(texts, each),
        hidden=np.zeros((texts, device.hidden_size), np.float32),
        logit_rows=np.arange(texts, dtype=np.int32),
        stop=np.zeros(1, np.uint8),
    )
    return np.array(device.step(batch).logits)
