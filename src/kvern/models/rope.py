"""Rotary frequencies, with the scaling rules that files ask for. float32 arithmetic, as the models were trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvern.core.errors import ModelFileError
from kvern.kernels.ops import RopeSpec
from kvern.models.facts import Facts

Frequencies = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ScaledRope:
    """Frequencies, and the factor that a scaling rule puts on both rotated q and k (squared on the scores)."""

    rope: RopeSpec
    magnitude: float = 1.0


def _plain(theta: float, dim: int) -> Frequencies:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies: Frequencies = np.float32(1) / np.power(np.float32(theta), exponents)
    return frequencies


def _spec(theta: float, dim: int, frequencies: Frequencies) -> RopeSpec:
    if not np.all(np.isfinite(frequencies)):
        raise ModelFileError(f"rotary base {theta} and its scaling give no finite frequencies")
    return RopeSpec(theta=theta, dim=dim, frequencies=tuple(float(f) for f in frequencies))


def plain(theta: float, dim: int) -> RopeSpec:
    """Frequencies ``theta ** (-2 i / dim)``."""
    if theta <= 0 or dim <= 0 or dim % 2:
        raise ModelFileError(f"rotary base {theta} over {dim} elements is out of range")
    return _spec(theta, dim, _plain(theta, dim))


def linear(theta: float, dim: int, factor: float) -> RopeSpec:
    """All frequencies divided by ``factor``."""
    if factor <= 0:
        raise ModelFileError(f"rotary scaling factor {factor} is out of range")
    return _spec(theta, dim, _plain(theta, dim) / np.float32(factor))


def divided(theta: float, dim: int, factors: Frequencies) -> RopeSpec:
    """Each frequency divided by its own factor (the ``rope_freqs`` tensor of GGUF files)."""
    if factors.shape != (dim // 2,) or not np.all(factors > 0):
        raise ModelFileError(f"rotary factors have shape {factors.shape}, not {dim // 2} positive values")
    return _spec(theta, dim, _plain(theta, dim) / factors)


def llama3(theta: float, dim: int, scaling: Facts) -> RopeSpec:
    """Long wavelengths divided by a factor, short ones kept, those between blended (Llama 3.1)."""
    factor, low = scaling.number("factor"), scaling.number("low_freq_factor")
    high, original = scaling.number("high_freq_factor"), scaling.number("original_max_position_embeddings")
    if factor <= 0 or low <= 0 or high <= low:
        raise ModelFileError(f"llama3 rotary scaling {factor}, {low}, {high} is out of range")
    frequencies = _plain(theta, dim)
    wavelengths = 2 * math.pi / frequencies
    smooth = (original / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / factor + smooth * frequencies
    scaled = np.where(wavelengths > original / low, frequencies / factor, frequencies)
    between = (wavelengths <= original / low) & (wavelengths >= original / high)
    return _spec(theta, dim, np.where(between, blended, scaled).astype(np.float32))


def yarn(theta: float, dim: int, scaling: Facts, max_context: int) -> ScaledRope:
    """Fast dimensions kept, slow ones divided by a factor, a ramp between (YaRN, arXiv 2309.00071)."""
    original = scaling.number("original_max_position_embeddings", float(max_context))
    factor = scaling.number("factor", max_context / original)
    fast, slow = scaling.number("beta_fast", 32.0), scaling.number("beta_slow", 1.0)
    if factor <= 0 or original <= 0 or slow <= 0 or fast <= 0 or theta <= 1:
        raise ModelFileError(f"yarn rotary scaling by {factor} from {original} tokens is out of range")

    def dimension(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(fast), dimension(slow)
    if scaling.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (np.arange(dim // 2, dtype=np.float32) - low) / (high - low if high != low else 0.001)
    interpolated = np.clip(ramp, 0, 1)
    frequencies = _plain(theta, dim)
    mixed = frequencies / np.float32(factor) * interpolated + frequencies * (1 - interpolated)
    return ScaledRope(_spec(theta, dim, mixed.astype(np.float32)), _yarn_magnitude(factor, scaling))


def _yarn_magnitude(factor: float, scaling: Facts) -> float:
    if scaling.has("attention_factor"):
        return scaling.number("attention_factor")

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    weight, weight_all = scaling.number("mscale", 0.0), scaling.number("mscale_all_dim", 0.0)
    return magnitude(weight) / magnitude(weight_all) if weight and weight_all else magnitude(1.0)


def from_hf(config: Facts, dim: int, default_theta: float) -> ScaledRope:
    """The one rule of a config.json, in the older (rope_theta, rope_scaling) or newer (rope_parameters) spelling."""
    scaling = config.table("rope_parameters") or config.table("rope_scaling")
    theta = config.number("rope_theta", default_theta)
    if scaling is not None:
        theta = scaling.number("rope_theta", theta)
    return by_rule(config, scaling, theta, dim)


def by_rule(config: Facts, scaling: Facts | None, theta: float, dim: int) -> ScaledRope:
    """The rule of one ``rope_scaling`` or ``rope_parameters`` object. Raises ModelFileError."""
    unscaled = ScaledRope(plain(theta, dim))
    kind = "default" if scaling is None else scaling.text("rope_type", scaling.text("type", "default"))
    if scaling is None or kind == "default":
        return unscaled
    rotated = scaling.number("partial_rotary_factor", 1.0)
    if rotated != 1.0:
        raise ModelFileError(f"rotating {rotated} of each head is not supported")
    if kind == "linear":
        return ScaledRope(linear(theta, dim, scaling.number("factor")))
    if kind == "llama3":
        return ScaledRope(llama3(theta, dim, scaling))
    if kind == "yarn":
        return yarn(theta, dim, scaling, config.integer("max_position_embeddings"))
    raise ModelFileError(f"rotary scaling {kind!r} is not supported (default, linear, llama3 and yarn are)")


def from_gguf(arch: Facts, theta: float, dim: int, factors: Frequencies | None) -> ScaledRope:
    """The rule of the ``<architecture>.rope.*`` keys and the ``rope_freqs`` tensor. Raises ModelFileError."""
    plain(theta, dim)
    if factors is not None:
        return ScaledRope(divided(theta, dim, factors))
    factor = arch.number("rope.scaling.factor", arch.number("rope.scale_linear", 1.0))
    kind = arch.text("rope.scaling.type", "linear" if factor != 1.0 else "none")
    if kind == "none":
        return ScaledRope(plain(theta, dim))
    if kind == "linear":
        return ScaledRope(linear(theta, dim, factor))
    if kind == "yarn":
        keys = {
            "factor": factor,
            "original_max_position_embeddings": arch.get("rope.scaling.original_context_length"),
            "beta_fast": arch.get("rope.scaling.yarn_beta_fast"),
            "beta_slow": arch.get("rope.scaling.yarn_beta_slow"),
        }
        scaled = yarn(theta, dim, Facts(keys), arch.integer("context_length"))
        return ScaledRope(scaled.rope, scaled.magnitude * arch.number("rope.scaling.attn_factor", 1.0))
    raise ModelFileError(f"rotary scaling {kind!r} is not supported (none, linear and yarn are)")
