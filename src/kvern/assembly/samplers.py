"""The sampler of each back end."""

from __future__ import annotations

from kvern.runtime.device import Device
from kvern.runtime.sampler import SampleKernel, Sampler


def make_sampler(backend: str, device: Device) -> Sampler:
    """``device`` is the one whose logits are sampled: its threads do the work."""
    kernel: SampleKernel
    if backend == "cpu":
        # The native library is loaded only where it is used.
        from kvern.kernels.cpu.device import CpuDevice
        from kvern.kernels.cpu.sampler import CpuSampler

        assert isinstance(device, CpuDevice)
        kernel = CpuSampler(device.pool)
    else:
        from kvern.kernels.reference.sample import ReferenceSampler

        kernel = ReferenceSampler()
    return Sampler(kernel)
