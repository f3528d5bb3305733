"""The formats of a model as a device will have them, refused where the back end cannot run them."""

from __future__ import annotations

from importlib import import_module

from kvern.assembly.device_options import DeviceOptions
from kvern.core.errors import ConfigError
from kvern.formats import weights as weight_formats
from kvern.formats.capabilities import AUTO, activation_name, activation_refusal
from kvern.kernels.ops import Weight
from kvern.models.network import Model


def native_serves(weight_format: str, activation: str) -> bool:
    """Whether the native kernels multiply weights and inputs in these formats."""
    native = import_module("kvern._native")  # the native library is loaded only where it is used
    try:
        return bool(native.linear_served(weight_formats.get(weight_format).name.lower(), activation))
    except ValueError:
        return False


def forms_of(weight: Weight) -> tuple[str, str]:
    """(weight format, activation format) of a matrix."""
    form = weight_formats.get(weight.format)
    return form.name, weight.activation or form.activation


def backend_for(network: Model) -> str:
    """``cpu`` where every matrix has a native kernel, else ``reference``."""
    forms = {forms_of(weight) for weight in network.weights()}
    return "cpu" if all(native_serves(*pair) for pair in forms) else "reference"


def chosen_network(network: Model, options: DeviceOptions) -> Model:
    """``network`` in the formats that ``options`` ask for. Raises ConfigError, with the reason, when a weight format
    does not go with an activation format or the back end has no kernel for the two."""
    found = network.in_format(options.weight_format)
    if options.activation_format != AUTO:
        found = found.with_activation(activation_name(options.activation_format))
    for weight_format, activation in sorted({forms_of(weight) for weight in found.weights()}):
        refused = activation_refusal(weight_format, activation)
        if refused is None and options.backend == "cpu" and not native_serves(weight_format, activation):
            refused = (
                f"the cpu back end has no kernel for weights in {weight_format} with inputs as {activation!r}; "
                "--backend reference runs them, slowly"
            )
        if refused is not None:
            raise ConfigError(refused)
    return found
