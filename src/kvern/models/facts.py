"""Typed reading of what a model file says about itself, with errors that name the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvern.core.errors import ModelFileError


class Facts:
    """A mapping of keys to unchecked values; ``prefix`` is put before every key asked for.

    A value of None counts as absent. Every method raises ModelFileError when the key is absent and no default is
    given, or when the value has the wrong type.
    """

    def __init__(self, values: Mapping[str, object], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix

    def under(self, prefix: str) -> Facts:
        """The same values, asked for with another prefix."""
        return Facts(self._values, prefix)

    def over(self, defaults: Mapping[str, object]) -> Facts:
        """These facts, with ``defaults`` (keys without prefix) where they say nothing."""
        own = {k: v for k, v in self._values.items() if v is not None}
        return Facts({**{self._prefix + k: v for k, v in defaults.items()}, **own}, self._prefix)

    def get(self, key: str) -> object:
        """The value as it stands, or None."""
        return self._values.get(self._prefix + key)

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer. A list of equal integers (a value per layer) counts as one."""
        value = self._or_default(key, default)
        if isinstance(value, Sequence) and not isinstance(value, str) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._or_default(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._or_default(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._or_default(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def table(self, key: str) -> Facts | None:
        """A nested mapping, or None when absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "an object")
        return Facts(value)

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of texts, or None when absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
            raise self._wrong(key, value, "a list of texts")
        return tuple(value)

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids from one integer, a list of them, or nothing."""
        value = self.get(key)
        if value is None:
            return ()
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
            raise self._wrong(key, value, "token ids")
        return tuple(values)

    def _or_default(self, key: str, default: object) -> object:
        value = self.get(key)
        if value is not None:
            return value
        if default is None:
            raise ModelFileError(f"the model file lacks {self._prefix + key!r}")
        return default

    def _wrong(self, key: str, value: object, wanted: str) -> ModelFileError:
        return ModelFileError(f"{self._prefix + key!r} is {str(value)[:80]!r}, not {wanted}")
