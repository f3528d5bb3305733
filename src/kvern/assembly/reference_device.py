"""The reference back end from options."""

from __future__ import annotations

from kvern.assembly.device_options import DeviceOptions
from kvern.kernels.reference.device import ReferenceDevice
from kvern.models.network import Model


def make(network: Model, options: DeviceOptions) -> ReferenceDevice:
    return ReferenceDevice(network, options.kv_format, options.pages, options.activations)
