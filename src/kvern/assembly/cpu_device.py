"""The native back end from options."""

from __future__ import annotations

from kvern import _native
from kvern.assembly.device_options import DeviceOptions
from kvern.kernels.cpu.device import CpuDevice, CpuLimits
from kvern.models.network import Model
from kvern.runtime.placement import place, read_topology


def make(network: Model, options: DeviceOptions) -> CpuDevice:
    cpus = place(options.threads, read_topology()) if options.pin_threads else ()
    limits = CpuLimits(
        pages=options.pages,
        max_rows=options.max_rows,
        tail_slots=options.sequences,
        weight_budget=options.weight_budget,
    )
    return CpuDevice(network, options.kv_format, limits, _native.Pool(options.threads, cpus))
