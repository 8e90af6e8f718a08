"""Base class and checks of all settings."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Settings = TypeVar("Settings", bound="Frozen")


FIELDS = "\n\nAttributes:\n"
"""Where the fields begin in the docstring of a class of settings."""


class Frozen(BaseModel):
    """Base of all settings: immutable, and unknown keys are errors.

    The string under a field describes it in ``help``, in the JSON schema and in the reference.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **settings: Any) -> None:
        """Add the fields to the docstring, for ``help``."""
        described = {name: " ".join((field.description or "").split()) for name, field in cls.model_fields.items()}
        lines = [f"    {name}: {text}" for name, text in described.items() if text]
        words = inspect.cleandoc(cls.__doc__ or "")
        cls.__doc__ = words + FIELDS + "\n".join(lines) if lines else words

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe the class in the schema without its fields, which are described there themselves."""
        made = handler(schema)
        handler.resolve_ref_schema(made)["description"] = (cls.__doc__ or "").partition(FIELDS)[0]
        return made


def check_known(kind: str, name: str, names: Iterable[str]) -> None:
    """Refuse a name that is not in a table.

    Raises:
        ValueError: Lists the known names; pydantic reports it for the key that is validated.
    """
    if name.partition(":")[0] not in names:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(names)}")
