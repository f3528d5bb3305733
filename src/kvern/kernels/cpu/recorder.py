"""Records a network's forward pass as the program that native/include/program.h runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kvern import _native
from kvern.core.errors import ModelFileError
from kvern.formats import activations
from kvern.formats import weights as weight_formats
from kvern.kernels.cpu.packing import Packer, pack
from kvern.kernels.ops import ACTIVATIONS, AttentionSpec, Network, RopeSpec, Vector, Weight

# OpCode of native/include/program.h.
EMBED, NORM, ENCODE, LINEAR, ATTEND, GATE, ADD = range(7)
RESIDUAL, LOGITS, NONE = 0, 1, -1
_BF16_WHERE_FAST = ("BF16", "W4A16")  # formats whose inputs are rounded to bf16 where AMX multiplies them


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer's attention as native code takes it; ``window`` 0 is none, ``rope`` an index of ``Program.ropes``."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int
    rope: int


@dataclass(slots=True)
class Program:
    """All that ``_native.Model`` reads. Slots are scratch rows of the widths given; see program.h for operations."""

    hidden: int
    vocab: int
    slots: list[int]
    layers: list[LayerShape] = field(default_factory=list)
    weights: list[_native.PackedWeight] = field(default_factory=list)
    vectors: list[list[float]] = field(default_factory=list)
    ropes: list[list[float]] = field(default_factory=list)
    # (slot, a weight it is for, activation format or "" for the weight format's own)
    encodings: list[tuple[int, int, str]] = field(default_factory=list)
    embed: list[_native.Operation] = field(default_factory=list)
    units: list[list[_native.Operation]] = field(default_factory=list)
    head: list[_native.Operation] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Value:
    """Rows of ``width`` float32 that an operation left in ``slot``."""

    slot: int
    width: int


class Recorder:
    """The ops protocol over `Value`: each call appends operations to ``current``.

    Values live within one unit only, so every unit starts with all scratch slots free.
    """

    def __init__(self, network: Network, pool: _native.Pool, pack: Packer = pack) -> None:
        self.program = Program(network.hidden_size, network.vocab_size, [network.hidden_size, network.vocab_size])
        self.current: list[_native.Operation] = []
        self._pool = pool
        self._pack = pack
        self._taken: set[int] = set()
        self._slots_before = 0  # slots that earlier units made
        self._encoded: dict[tuple[int, str, bytes], int] = {}  # of this unit
        self._encodings: dict[tuple[int, str, bytes], int] = {}  # of the program
        self._weights: dict[int, tuple[Weight, int]] = {}
        self._vectors: dict[int, tuple[Vector, int]] = {}
        self._ropes: dict[RopeSpec, int] = {}

    def begin(self) -> None:
        """Start an empty list of operations."""
        self.current = []
        self._taken = set()
        self._slots_before = len(self.program.slots)
        self._encoded = {}

    def embed(self, table: Weight, scale: float) -> Value:
        self._append(EMBED, weight=self._weight(table), value=scale)
        return Value(RESIDUAL, table.k)

    def norm(self, x: Value, weight: Vector, eps: float) -> Value:
        return self._norm(x, weight, 1, eps)

    def head_norm(self, x: Value, weight: Vector, heads: int, eps: float) -> Value:
        return self._norm(x, weight, heads, eps)

    def linear(self, x: Value, weight: Weight, bias: Vector | None = None) -> Value:
        out = self._take(weight.n)
        self._linear(x, weight, bias, out.slot)
        return out

    def attend(self, q: Value, k: Value, v: Value, layer: int, spec: AttentionSpec) -> Value:
        if self._layer_shape(spec) != self.program.layers[layer]:
            raise ModelFileError(f"layer {layer} attends in another shape than the network says")
        out = self._take(q.width)
        self._append(ATTEND, (q.slot, k.slot, v.slot, out.slot, layer))
        return out

    def gated(self, gate: Value, up: Value, activation: str) -> Value:
        out = self._take(gate.width)
        self._append(GATE, (gate.slot, up.slot, NONE, out.slot, NONE), parts=ACTIVATIONS.index(activation))
        return out

    def add(self, x: Value, y: Value) -> Value:
        if x.slot != RESIDUAL:
            raise ModelFileError("only the residual add is known to the cpu back end")
        self._append(ADD, (y.slot, NONE, NONE, NONE, NONE))
        return x

    def finish_head(self, logits: Value) -> None:
        """Send the last linear's output to the caller's logits instead of a scratch slot."""
        last = self._last_linear
        if last is None or last[3] != logits.slot:
            raise ModelFileError("the head of a network must end in a linear operation")
        self.current.pop()
        x, weight, bias, _ = last
        self._linear(x, weight, bias, LOGITS)
        if logits.slot == len(self.program.slots) - 1 and logits.slot >= self._slots_before:
            self.program.slots.pop()  # it would have been as wide as the vocabulary

    def attention(self, spec: AttentionSpec) -> None:
        """Announce the next layer's attention."""
        self.program.layers.append(self._layer_shape(spec))

    _last_linear: tuple[Value, Weight, Vector | None, int] | None = None

    def _linear(self, x: Value, weight: Weight, bias: Vector | None, out: int) -> None:
        index = self._weight(weight)
        encoding = self._encoding(x, weight, index)
        vector = NONE if bias is None else self._vector(bias)
        self._append(LINEAR, (encoding, NONE, NONE, out, NONE), weight=index, vector=vector)
        self._last_linear = (x, weight, bias, out)

    def _norm(self, x: Value, weight: Vector, parts: int, eps: float) -> Value:
        out = self._take(x.width)
        slots = (x.slot, NONE, NONE, out.slot, NONE)
        self._append(NORM, slots, vector=self._vector(weight), parts=parts, value=eps)
        return out

    def _append(
        self,
        code: int,
        slots: tuple[int, int, int, int, int] = (NONE,) * 5,
        *,
        weight: int = NONE,
        vector: int = NONE,
        parts: int = 0,
        value: float = 0.0,
    ) -> None:
        self.current.append(_native.Operation(code, list(slots), weight, vector, parts, value))

    def _take(self, width: int) -> Value:
        slots = self.program.slots
        free = (i for i in range(LOGITS + 1, len(slots)) if slots[i] == width and i not in self._taken)
        slot = next(free, len(slots))
        if slot == len(slots):
            slots.append(width)
        self._taken.add(slot)
        return Value(slot, width)

    def _encoding(self, x: Value, weight: Weight, index: int) -> int:
        """Rows of ``x`` in the form that ``weight`` multiplies, encoded once for all linears of one form."""
        form = weight.activation or weight_formats.get(weight.format).activation
        # Rows coded as a header says (a permutation of channels) serve only the weights with that header.
        header = weight.header.tobytes() if activations.get(form).uses_header else b""
        as_bf16 = weight.activation is None and weight.format.upper() in _BF16_WHERE_FAST
        key = x.slot, "bf16" if as_bf16 else form, header
        if key not in self._encoded:
            if key not in self._encodings:
                self._encodings[key] = len(self.program.encodings)
                self.program.encodings.append((x.slot, index, weight.activation or ""))
            self._encoded[key] = self._encodings[key]
            self._append(ENCODE, (self._encoded[key], NONE, NONE, NONE, NONE))
        return self._encoded[key]

    def _weight(self, weight: Weight) -> int:
        if id(weight) not in self._weights:
            self._weights[id(weight)] = weight, len(self.program.weights)
            self.program.weights.append(self._pack(weight, self._pool))
        return self._weights[id(weight)][1]

    def _vector(self, vector: Vector) -> int:
        if id(vector) not in self._vectors:
            self._vectors[id(vector)] = vector, len(self.program.vectors)
            self.program.vectors.append(vector.data.astype(np.float32).tolist())
        return self._vectors[id(vector)][1]

    def _layer_shape(self, spec: AttentionSpec) -> LayerShape:
        if spec.rope not in self._ropes:
            self._ropes[spec.rope] = len(self.program.ropes)
            self.program.ropes.append(list(spec.rope.frequencies))
        return LayerShape(
            spec.heads, spec.kv_heads, spec.head_dim, spec.scale, spec.window or 0, self._ropes[spec.rope]
        )


def record(network: Network, pool: _native.Pool, pack: Packer = pack) -> Program:
    """Pack every weight and record every unit. Raises ModelFileError for what the cpu back end cannot run."""
    recorder = Recorder(network, pool, pack)
    program = recorder.program
    for spec in network.attention:
        recorder.attention(spec)
    recorder.begin()
    if network.embed(recorder).slot != RESIDUAL or len(recorder.current) != 1:
        raise ModelFileError("a network must begin with one embedding")
    program.embed = recorder.current
    for unit in range(2 * len(network.attention)):
        recorder.begin()
        x = network.unit(recorder, unit, Value(RESIDUAL, network.hidden_size))
        if x.slot != RESIDUAL:
            raise ModelFileError(f"unit {unit} does not end in a residual add")
        program.units.append(recorder.current)
    recorder.begin()
    recorder.finish_head(network.head(recorder, Value(RESIDUAL, network.hidden_size)))
    program.head = recorder.current
    return program
