"""Which requests can never run here. The refusal names the field and the value that would do."""

from __future__ import annotations

from kvern.core.events import Refuse
from kvern.core.limits import EngineConfig
from kvern.core.request import Request


def refusal(request: Request, config: EngineConfig) -> Refuse | None:
    """None when the request can run, given time."""
    prompt, wanted, most = len(request.prompt), request.sampling.max_tokens, config.max_sequence
    if not prompt:
        return Refuse(request.id, "prompt", "the prompt is empty; send at least one token", 1.0)
    if min(request.prompt) < 0 or min(request.accepted, default=0) < 0:
        return Refuse(request.id, "prompt", "a token id is negative", 0.0)
    if wanted < 1:
        return Refuse(request.id, "max_tokens", f"max_tokens is {wanted}; it must be at least 1", 1.0)
    if prompt >= most:
        text = f"the prompt has {prompt} tokens; at most {most - 1} fit with one token of output"
        return Refuse(request.id, "prompt", text, float(most - 1))
    if prompt + wanted > most:
        text = f"{prompt} prompt tokens and max_tokens {wanted} are more than the {most} tokens that fit"
        return Refuse(request.id, "max_tokens", f"{text}; max_tokens may be {most - prompt}", float(most - prompt))
    if not 0 < request.weight < float("inf"):
        return Refuse(request.id, "weight", f"weight is {request.weight}; it must be a number above 0")
    return None
