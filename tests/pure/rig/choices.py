"""Policies by name, as assembly makes them."""

from __future__ import annotations

import importlib
from typing import Any

from kvern.core.views import Policies
from kvern.policies.table import TABLE


def make(family: str, name: str, *args: Any) -> Any:
    """One policy of the table."""
    module, function = TABLE[family][name].split(":")
    return getattr(importlib.import_module(module), function)(*args)


def policies(**names: Any) -> Policies:
    """The defaults, but for those given: a name, ``(name, argument, ...)``, or a policy record."""
    made = {}
    for family, table in TABLE.items():
        choice = names.pop(family, next(iter(table)))
        if isinstance(choice, str):
            choice = make(family, choice)
        elif isinstance(choice, tuple):
            choice = make(family, *choice)
        made[family] = choice
    assert not names
    return Policies(**made)
