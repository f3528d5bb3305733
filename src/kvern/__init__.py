"""kvern: a mill that grinds prompts into tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvern.llm import LLM, AsyncLLM
    from kvern.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "SamplingParams", "__version__"]

_HOMES = {"LLM": "kvern.llm", "AsyncLLM": "kvern.llm", "SamplingParams": "kvern.sampling_params"}


def __getattr__(name: str) -> Any:
    """Import the Python API when it is first asked for: the parts of kvern do not pay for it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kvern' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
