"""Every error class a caller may have to tell apart. Each message names the thing and the fix."""


class KvernError(Exception):
    """Root of all errors that kvern raises on purpose."""


class ConfigError(KvernError):
    """A setting is unknown, out of range, or conflicts with another; raised before anything starts."""


class PlanError(KvernError):
    """A memory plan does not fit its budget; the message carries the value that would."""


class ModelFileError(KvernError):
    """A weight or tokenizer file is damaged, hostile or unsupported."""


class InvalidRequest(KvernError):
    """A request field is wrong. ``field`` is the name the client used; ``code`` is machine-readable."""

    def __init__(self, message: str, *, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


class EngineDead(KvernError):
    """The engine process ended and could not be brought back."""


class Overloaded(KvernError):
    """The queue is full; try again after ``retry_after_s`` seconds."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InvariantBroken(KvernError):
    """A law of the ledger was about to be broken: a bug in kvern, never in a request."""
