"""Attention against a float64 softmax over what the pages themselves hold."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from cpu_rig import PAGES, Part, cpu_device, random_table, run

from kvern.formats import hadamard
from kvern.formats import kv as kv_formats
from kvern.formats.kv import kv8
from kvern.kernels.cpu.device import CpuDevice
from kvern.kernels.ops import AttentionSpec, RopeSpec, Vector, Weight

HIDDEN = 64


def matrix(name: str, values: np.ndarray) -> Weight:
    values = np.ascontiguousarray(values, np.float32)
    return Weight(name, "F32", *values.shape, values.view(np.uint8))


@dataclass
class OneLayer:
    """Unit 0 is attention whose output, through an orthogonal-free plain matrix, is all it adds to the residual."""

    spec: AttentionSpec
    attention: tuple[AttentionSpec, ...] = field(init=False)
    hidden_size: int = HIDDEN
    vocab_size: int = 512

    def __post_init__(self) -> None:
        draw = np.random.default_rng(1)
        queries, keys = self.spec.heads * self.spec.head_dim, self.spec.kv_heads * self.spec.head_dim
        self.attention = (self.spec,)
        self.tables = {
            "embedding": draw.standard_normal((self.vocab_size, HIDDEN)),
            "query": draw.standard_normal((queries, HIDDEN)) * 0.3,
            "key": draw.standard_normal((keys, HIDDEN)) * 0.3,
            "value": draw.standard_normal((keys, HIDDEN)) * 0.1,
            "output": draw.standard_normal((HIDDEN, queries)) / np.sqrt(queries),
            "head": draw.standard_normal((self.vocab_size, HIDDEN)),
        }
        self.tables = {name: values.astype(np.float32) for name, values in self.tables.items()}
        self.matrices = {name: matrix(name, values) for name, values in self.tables.items()}
        self.ones = Vector("ones", np.ones(HIDDEN, np.float32))

    def embed(self, ops):
        return ops.embed(self.matrices["embedding"], 1.0)

    def unit(self, ops, unit, x):
        h, w = ops.norm(x, self.ones, 1e-6), self.matrices
        if unit == 1:
            return ops.add(x, h)
        q, k, v = (ops.linear(h, w[name]) for name in ("query", "key", "value"))
        return ops.add(x, ops.linear(ops.attend(q, k, v, 0, self.spec), w["output"]))

    def head(self, ops, x):
        return ops.linear(ops.norm(x, self.ones, 1e-6), self.matrices["head"])

    def weights(self):
        return tuple(self.matrices.values())


def layer(heads: int, kv_heads: int, dim: int, window: int | None = None) -> OneLayer:
    frequencies = tuple(float(np.float32(100.0 ** (-2 * i / dim))) for i in range(dim // 2))
    return OneLayer(AttentionSpec(heads, kv_heads, dim, dim**-0.5, window, RopeSpec(100.0, dim, frequencies)))


def read_pages(device: CpuDevice, table: list[int], count: int, kv_format: str, spec: AttentionSpec):
    """Keys and values [count, kv_heads, head_dim] as float64, decoded from the bytes of the pages."""
    at, dim = device.model.page_layout(0), spec.head_dim
    keys, values = (np.zeros((count, spec.kv_heads, dim)) for _ in range(2))
    pack, kind = (2, np.uint16) if kv_format == "bf16" else (4, np.int8)
    for first in range(0, count, 64):
        page = np.frombuffer(device.model.read_page(table[first // 64]), np.uint8)
        rows = slice(first, min(first + 64, count))
        for head in range(spec.kv_heads):
            block = page[at["offset"] + head * at["block_bytes"] :]
            k = block[: 64 * dim * kind().itemsize].view(kind).reshape(4, dim // pack, 16, pack)
            k = k.transpose(0, 2, 1, 3).reshape(64, dim)
            v_bytes = 64 * at["padded_dim"] * kind().itemsize
            v = block[at["v_offset"] : at["v_offset"] + v_bytes].view(kind)
            v = v.reshape(64 // pack, at["padded_dim"], pack).transpose(0, 2, 1).reshape(64, -1)[:, :dim]
            if kv_format == "bf16":
                k, v = ((x.astype(np.uint32) << 16).view(np.float32) for x in (k, v))
            else:
                scales = [block[at[f"{x}_scale_offset"] :][:256].view(np.float32)[:, None] for x in "kv"]
                k, v = k * scales[0].astype(np.float64), v * scales[1].astype(np.float64)
                if dim > kv8.WIDEST_PLAIN:
                    k = hadamard.rotate(k.astype(np.float32))
            keys[rows, head], values[rows, head] = k[: rows.stop - first], v[: rows.stop - first]
    return keys, values


def exact_rows(network: OneLayer, tokens: list[int]):
    """float64 queries and keys, both rotated, and values: [T, heads, dim]."""
    spec, tables = network.spec, {name: t.astype(np.float64) for name, t in network.tables.items()}
    x = tables["embedding"][tokens]
    h = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6)
    angles = spec.rope.angles(np.arange(len(tokens), dtype=np.int32))[:, None]

    def turned(rows: np.ndarray) -> np.ndarray:
        a, b = np.split(rows, 2, axis=-1)
        return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)

    q, k, v = ((h @ tables[name].T).reshape(len(tokens), -1, spec.head_dim) for name in ("query", "key", "value"))
    return x, turned(q), turned(k), v


def exact_attention(network: OneLayer, q, keys, values) -> np.ndarray:
    spec, count = network.spec, len(q)
    distance = np.arange(count)[:, None] - np.arange(count)[None, :]
    seen = (distance >= 0) & (distance < (spec.window or count + 1))
    out = np.empty_like(q)
    for head in range(spec.heads):
        kv = head // (spec.heads // spec.kv_heads)
        scores = np.where(seen, q[:, head] @ keys[:, kv].T * spec.scale, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = weights @ values[:, kv] / weights.sum(axis=1, keepdims=True)
    return out.reshape(count, -1) @ network.tables["output"].astype(np.float64).T


SHAPES = [(9, 3, 64), (4, 1, 256), (8, 8, 128), (3, 1, 8), (5, 1, 20), (14, 2, 16), (2, 1, 12), (24, 1, 32)]


@pytest.mark.parametrize("kv_format", ["bf16", "kv8"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
def test_every_row_of_a_prefill(heads, kv_heads, dim, kv_format):
    check(layer(heads, kv_heads, dim), kv_format, 200, 77)


@pytest.mark.parametrize("kv_format", ["bf16", "kv8"])
@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 130, 512, 700])
def test_sliding_windows(window, kv_format):
    check(layer(4, 2, 16, window), kv_format, 650, 100)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 511, 512, 513, 575, 600])
def test_contexts_around_pages_and_chunks(count):
    check(layer(6, 2, 16), "bf16", count, 640)
    check(layer(6, 2, 16), "kv8", count, 640)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_decode_over_several_softmax_chunks(threads):
    check(layer(3, 1, 32), "bf16", 1100, 512, threads)


def check(network: OneLayer, kv_format: str, count: int, chunk: int, threads: int = 1) -> None:
    device = cpu_device(network, kv_format, threads)
    tokens = np.random.default_rng(count).integers(0, network.vocab_size, count).tolist()
    table, found = random_table(count), []
    for at in [*range(0, count - 1, chunk)]:
        found.append(run(device, Part(tokens[at : min(at + chunk, count - 1)], at, table, 0, 1)).hidden[0])
    found.append(run(device, Part(tokens[-1:], count - 1, table, 0, 1)).hidden[0])  # and one decode step
    x, q, exact_keys, exact_values = exact_rows(network, tokens)
    keys, values = read_pages(device, table, count, kv_format, network.spec)
    wanted = x + exact_attention(network, q, keys, values)
    # kv8 rounds queries and weights to 2^-15 of their largest (native/include/kv/int8.h).
    np.testing.assert_allclose(np.concatenate(found), wanted, atol=3e-5 if kv_format == "bf16" else 1e-3)
    # What the pages hold is what the format's NumPy reference makes of the exact rows, but for values on the edge
    # of two codes.
    formats = kv_formats.get(kv_format)
    for held, exact, coding in ((keys, exact_keys, formats.keys), (values, exact_values, formats.values)):
        apart = np.abs(held - coding.stored(exact.astype(np.float32))) > 1e-5
        assert apart.mean() < 0.002


def test_pages_of_other_sequences_are_left_alone():
    network = layer(4, 2, 16)
    device = cpu_device(network, "kv8")
    before = {page: device.model.read_page(page) for page in range(PAGES)}
    run(device, Part(list(range(70)), 0, [9, 11], 0, 1))
    assert {page for page in range(PAGES) if device.model.read_page(page) != before[page]} == {9, 11}


def test_overflowing_scores_become_nan_not_a_plausible_answer():
    network = layer(2, 1, 16)
    device = cpu_device(network)
    query = network.matrices["query"]
    assert query.raw.size
    huge = layer(2, 1, 16)
    huge.matrices["query"] = matrix("query", huge.tables["query"] * 1e30)
    huge.matrices["key"] = matrix("key", huge.tables["key"] * 1e30)
    out = run(cpu_device(huge), Part([1, 2, 3], 0, [0], 0, 1)).hidden[0]
    assert np.isnan(out).any(axis=1).all()
    assert np.isfinite(run(device, Part([1, 2, 3], 0, [0], 0, 1)).hidden[0]).all()
