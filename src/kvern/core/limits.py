"""What bounds an engine: fixed at start, read by the mechanism and by every policy."""

from __future__ import annotations

from dataclasses import dataclass

from kvern.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of one engine. Raises ConfigError when they contradict each other."""

    pages: int  # of KV, in all
    units: int  # sublayers of the model
    max_context: int  # tokens, prompt and output of one sequence together
    page_tokens: int = 64
    max_running: int = 64  # sequences that hold memory at once
    max_step_tokens: int = 512  # rows of one plan
    max_waiting: int = 1024  # sequences in the queue; further ones are refused
    lanes: int = 1
    depth: int = 1  # plans in flight per lane
    prefix_cache: bool = True
    cache_domain: bytes = b""  # numerics version and KV format: pages are shared within one domain only
    max_losses: int = 4  # times a sequence may lose its memory; then it enters with all pages of its life
    lane_retries: int = 1  # failed plans in a row before their sequences are tried apart
    max_wait_s: float = 0.1  # longest time a policy may leave every lane idle while there is work
    reprioritise_interval_s: float = 1.0  # between two changes of one sequence's precedence

    def __post_init__(self) -> None:
        positive = (
            "pages",
            "units",
            "max_context",
            "page_tokens",
            "max_running",
            "max_step_tokens",
            "lanes",
            "depth",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("max_waiting", "max_losses", "lane_retries", "max_wait_s", "reprioritise_interval_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative")

    @property
    def max_sequence(self) -> int:
        """Tokens, prompt and output together, that one sequence may have here: the context, or all pages."""
        return min(self.max_context, self.pages * self.page_tokens)

    def pages_for(self, tokens: int) -> int:
        """Pages that hold the KV of so many tokens."""
        return -(-tokens // self.page_tokens)
