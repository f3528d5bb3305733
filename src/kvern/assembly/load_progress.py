"""How far the loading of a model is, told as its matrices are let go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from kvern.assembly.model import LoadedModel
from kvern.kernels.ops import Weight
from kvern.models.network import LayerWeights

Report = Callable[[int, int], None]  # bytes of matrices brought to the back end, and of all


class _Count:
    def __init__(self, total: int, report: Report) -> None:
        self._done, self._total, self._report = 0, total, report
        report(0, total)

    def watch(self, weight: Weight) -> Weight:
        """The same matrix, whose release is counted."""

        def release() -> None:
            if weight.release is not None:
                weight.release()
            self._done += weight.raw.nbytes
            self._report(self._done, self._total)

        return replace(weight, release=release)


def watched(model: LoadedModel, report: Report) -> LoadedModel:
    """The same model, telling ``report`` each time a back end has taken over a matrix."""
    network = model.network
    count = _Count(sum(weight.raw.nbytes for weight in network.weights()), report)
    embedding = count.watch(network.embedding)
    counted = replace(
        network,
        embedding=embedding,
        layers=tuple(_layer(layer, count) for layer in network.layers),
        output=embedding if network.output is network.embedding else count.watch(network.output),
    )
    return replace(model, opened=replace(model.opened, network=counted))


def _layer(layer: LayerWeights, count: _Count) -> LayerWeights:
    found = {item.name: getattr(layer, item.name) for item in fields(LayerWeights)}
    changed: dict[str, Any] = {n: count.watch(value) for n, value in found.items() if isinstance(value, Weight)}
    return replace(layer, **changed)
