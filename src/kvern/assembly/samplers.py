"""The sampler of each back end."""

from __future__ import annotations

from kvern.runtime.device import Device
from kvern.runtime.sampler import SampleKernel, Sampler


def make_sampler(backend: str, device: Device) -> Sampler:
    """``device`` is the one whose logits are sampled: its threads do the work."""
    kernel: SampleKernel
    if backend == "cpu":
        from kvern.kernels.cpu.sampler import CpuSampler  # the native library is loaded only where it is used

        kernel = CpuSampler(device.pool)
    else:
        from kvern.kernels.reference.sample import ReferenceSampler

        kernel = ReferenceSampler()
    return Sampler(kernel)
