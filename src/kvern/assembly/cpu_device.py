"""The native back end from options."""

from __future__ import annotations

from kvern import _native
from kvern.assembly.device_options import DeviceOptions
from kvern.kernels.cpu.device import CpuDevice, CpuLimits
from kvern.models.network import Model


def make(network: Model, options: DeviceOptions) -> CpuDevice:
    limits = CpuLimits(pages=options.pages, max_rows=options.max_rows)
    return CpuDevice(network, options.kv_format, limits, _native.Pool(options.threads))
