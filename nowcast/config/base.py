"""Base class and checks of all settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
)

Settings = TypeVar("Settings", bound="Frozen")


class Frozen(BaseModel):
    """Base of all settings: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def check_known(kind: str, name: str, names: Iterable[str]) -> None:
    """Refuse a name that is not in a table.

    Raises:
        ValueError: Lists the known names; pydantic reports it for the key that is validated.
    """
    if name.partition(":")[0] not in names:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(names)}")
