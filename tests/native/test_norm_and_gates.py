"""Norms and gated activations of the native program against float64, at widths that end within a vector."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cpu_rig import Part, cpu_device, run

from kvern import _native
from kvern.kernels.ops import AttentionSpec, RopeSpec, Vector, Weight

VOCAB = 40


@dataclass
class Pieces:
    """Unit 0 adds a norm over ``parts`` pieces of the row, unit 1 a gated activation of the row's norm."""

    hidden_size: int
    parts: int
    activation: str
    vocab_size: int = VOCAB

    def __post_init__(self) -> None:
        draw, width = np.random.default_rng(self.hidden_size), self.hidden_size
        self.attention = (AttentionSpec(1, 1, 4, 1.0, None, RopeSpec(100.0, 4, (1.0, 0.1))),)
        self.table = (draw.standard_normal((VOCAB, width)) * 3).astype(np.float32)
        self.weight = Vector("norm", draw.standard_normal(width // self.parts).astype(np.float32))
        self.steep = Vector("steep", np.linspace(-40, 40, width).astype(np.float32))
        self.embedding = Weight("embedding", "F32", VOCAB, width, self.table.view(np.uint8))

    def embed(self, ops):
        return ops.embed(self.embedding, 1.5)

    def unit(self, ops, unit, x):
        if unit == 0:
            return ops.add(x, ops.head_norm(x, self.weight, self.parts, 1e-5))
        h = ops.norm(x, self.steep, 1e-5)
        return ops.add(x, ops.gated(h, ops.norm(x, self.steep, 1e-5), self.activation))

    def head(self, ops, x):
        return ops.linear(ops.norm(x, self.steep, 1e-5), self.embedding)

    def weights(self):
        return (self.embedding,)


def exact_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * weight


def exact_gate(x: np.ndarray, activation: str) -> np.ndarray:
    if activation == "silu":
        return x / (1 + np.exp(-x))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(
    ("width", "parts"), [(1, 1), (15, 3), (16, 1), (17, 1), (48, 4), (100, 5), (576, 9), (641, 1)]
)
def test_widths(width, parts, activation):
    network = Pieces(width, parts, activation)
    device = cpu_device(network)
    tokens = list(range(VOCAB))
    x = network.table.astype(np.float64) * 1.5
    first = run(device, Part(tokens, 0, [0], 0, 1)).hidden[0]
    x += exact_norm(x.reshape(VOCAB, parts, -1), network.weight.data.astype(np.float64)).reshape(VOCAB, width)
    np.testing.assert_allclose(first, x, rtol=3e-6, atol=1e-5)
    h = exact_norm(x, network.steep.data.astype(np.float64))
    logits = run(device, Part(tokens, 0, [0], 1, 2, first)).logits[0]
    x += exact_gate(h, activation) * h
    wanted = exact_norm(x, network.steep.data.astype(np.float64)) @ network.table.astype(np.float64).T
    np.testing.assert_allclose(logits, wanted, rtol=2e-5, atol=2e-5 * np.abs(wanted).max())


BITS_OF_LOGITS = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from cpu_rig import cpu_device, logits_of, random_table, random_tokens, tiny_network
models = (("llama", "F32", "bf16"), ("gemma3", "F16", "kv8"), ("qwen3", "Q4_1", "kv8"))
for family, weight_format, kv_format in models:
    network = tiny_network(family, weight_format, seed=3)
    logits = logits_of(cpu_device(network, kv_format), random_tokens(network, 80), random_table(0), 50)
    print(hashlib.sha256(logits.tobytes()).hexdigest())
"""


def bits_on(isa: str) -> str:
    support = str(Path(__file__).parents[1] / "support")
    paths = os.pathsep.join(p for p in sys.path if p)
    ran = subprocess.run(
        [sys.executable, "-c", BITS_OF_LOGITS, support],
        env={**os.environ, "KVERN_ISA": isa, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_every_instruction_set_here_gives_the_same_bits():
    """Of float32, f16 and block formats; bf16 weights on AMX are the one exception."""
    isas = _native.available_isas()
    found = {isa: bits_on(isa) for isa in isas}
    assert len(set(found.values())) == 1, found
    assert len(next(iter(found.values())).split()) == 3
