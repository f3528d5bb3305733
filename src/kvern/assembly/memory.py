"""The memory plan of a model on a back end: what it needs by its shapes, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from kvern.assembly.capable import chosen_network
from kvern.assembly.device_options import DeviceOptions
from kvern.assembly.model import LoadedModel
from kvern.formats import kv as kv_formats
from kvern.formats import weights as weight_formats
from kvern.formats.kv_format import TAIL_PAGES, Coding
from kvern.kernels.ops import Weight
from kvern.models.network import Model
from kvern.models.spec import ModelSpec
from kvern.runtime.device import PAGE_TOKENS
from kvern.runtime.memory_plan import (
    MIB,
    MemoryNeeds,
    MemoryPlan,
    available_bytes,
    default_budget,
    plan,
    resident_bytes,
)

# Modules imported and threads started after the plan is made, and what an allocator keeps.
_PROCESS_GROWTH = 64 * MIB
_PROMPT_LOGITS = 64 * MIB  # of one device call, at most (kvern.runtime.executor.LOGIT_BYTES)
_SUPER_BLOCKS = ("Q4_K", "Q5_K")  # packed with 4 bytes more a super-block than in the file
_PARTIALS = 4 * MIB  # softmax partials of split attention
_BYTES_PER_CACHED_PAGE = 1024  # of the prefix index and block tables, in Python


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """``budget`` in bytes of the whole process, None for the default; tokens, sequences, pages."""

    max_context: int
    max_running: int
    budget: int | None = None
    pages: int | None = None


def plan_memory(model: LoadedModel, options: DeviceOptions, limits: MemoryLimits) -> MemoryPlan:
    """The plan; make the device with its ``pages``. Raises PlanError with the value that would fit."""
    needs = memory_needs(model, options, limits)
    budget = default_budget(available_bytes(), needs) if limits.budget is None else limits.budget
    return plan(budget, needs, limits.pages)


def memory_needs(model: LoadedModel, options: DeviceOptions, limits: MemoryLimits) -> MemoryNeeds:
    """Upper bounds by shape, tight for the cpu back end. The reference back end holds decoded weights."""
    spec, network = model.spec, chosen_network(model.network, options)
    rows = options.max_rows
    logits = max(limits.max_running * spec.vocab * 4, min(_PROMPT_LOGITS, rows * spec.vocab * 4))
    page = page_bytes(spec, options)
    longest_tables = limits.max_running * (limits.max_context // PAGE_TOKENS + 1) * 4
    return MemoryNeeds(
        weights=_matrices(network, options) + _vector_bytes(network),
        load=max(_load(weight, options.backend) for weight in network.weights()),
        scratch=rows * _row_bytes(spec) + logits + _PARTIALS,
        host=longest_tables + limits.max_running * limits.max_context * 8 + _BYTES_PER_CACHED_PAGE * 1024,
        process=resident_bytes() + _PROCESS_GROWTH,
        page=page,
        max_context=limits.max_context,
        max_running=limits.max_running,
        longest=spec.max_context,
        tails=tail_bytes(spec, options),
    )


def page_bytes(spec: ModelSpec, options: DeviceOptions) -> int:
    """Bytes that one page takes in memory, with the padding of the back end."""
    if options.backend == "reference":
        return sum(2 * 4 * PAGE_TOKENS * layer.kv_heads * layer.head_dim for layer in spec.layers)
    kv = kv_formats.get(options.kv_format)
    return sum(
        layer.kv_heads * (_codes_bytes(kv.keys, layer.head_dim, 8 if kv.keys.bits == 4 else 1)
                          + _codes_bytes(kv.values, layer.head_dim, 32 if kv.values.bits == 4 else 16))
        for layer in spec.layers
    )  # fmt: skip


def _codes_bytes(coding: Coding, head_dim: int, unit: int) -> int:
    """Keys or values of one head in one page of the cpu back end, channels padded to a multiple of ``unit``
    (native/include/kv_format.h)."""
    codes = PAGE_TOKENS * _padded(head_dim, unit) * coding.bits // 8
    beside = PAGE_TOKENS * coding.vector_bytes + _padded(head_dim, 16) * coding.channel_bytes
    return _padded(codes, 64) + _padded(beside, 64)


def tail_bytes(spec: ModelSpec, options: DeviceOptions) -> int:
    """Bytes of the newest tokens of all sequences, where the KV format keeps them outside the pages."""
    if options.backend == "reference" or not kv_formats.get(options.kv_format).tail:
        return 0
    page = sum(
        2 * PAGE_TOKENS * layer.kv_heads * (layer.head_dim + _padded(layer.head_dim, 16)) for layer in spec.layers
    )
    widest = max(2 * PAGE_TOKENS * 2 * layer.kv_heads * _padded(layer.head_dim, 16) for layer in spec.layers)
    crossing = options.max_rows // PAGE_TOKENS + min(options.max_rows // 2, options.sequences) + 1
    return options.sequences * TAIL_PAGES * page + crossing * widest


def _padded(count: int, to: int) -> int:
    return -(-count // to) * to


def _matrices(network: Model, options: DeviceOptions) -> int:
    whole = sum(_held(weight, options.backend) for weight in network.weights())
    return whole if options.weight_budget is None else min(whole, options.weight_budget)


def _held(weight: Weight, backend: str) -> int:
    """Bytes of a matrix on the back end: packed in tiles of 16 outputs, or decoded to float32."""
    if backend == "reference":
        return weight.n * weight.k * 4
    found = weight_formats.get(weight.format)
    columns = weight.k if found.block > 1 else _padded(weight.k, 64)
    more = 4 * (weight.k // 256) if found.name in _SUPER_BLOCKS else 0
    return _padded(weight.n, 16) * (found.row_bytes(columns, weight.header) + more) + weight.header.size


def _load(weight: Weight, backend: str) -> int:
    """Bytes of the file (and of what is decoded on the way) that are resident while this matrix is brought in."""
    source = weight if weight.converted is None else weight.converted
    file = source.n * weight_formats.get(source.format).row_bytes(source.k, source.header)
    way = weight.n * weight.k * 4 if weight.converted is not None or backend == "reference" else 0
    return file + 2 * way


def _vector_bytes(network: Model) -> int:
    return 64 * network.spec.hidden * len(network.layers)


def _row_bytes(spec: ModelSpec) -> int:
    """Bytes of one working row: every value of a layer once, as floats and encoded, and the rotary tables."""
    widest = max(spec.layers, key=lambda layer: layer.heads * layer.head_dim)
    queries, keys = widest.heads * widest.head_dim, widest.kv_heads * widest.head_dim
    values = 6 * spec.hidden + 3 * queries + 4 * keys + 3 * spec.intermediate
    ropes = len({layer.rope for layer in spec.layers}) * widest.head_dim
    return 4 * (values + ropes) + 2 * (2 * spec.hidden + queries + spec.intermediate)
