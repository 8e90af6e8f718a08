"""Settings from YAML files and ``key=value`` overrides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
)

from nowcast.config.base import Settings
from nowcast.core.errors import ConfigError


def load(kind: type[Settings], path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Read settings from a YAML file, with ``key=value`` overrides (``trainer.epochs=3``).

    Args:
        kind: Class of the settings.
        path: A file, or the name of one shipped in ``configs/``.
        overrides: Dotted keys and YAML values.

    Raises:
        ConfigError: One sentence per mistake: file, key, what is wrong, which values are allowed.
    """
    file = find(path)
    try:
        values = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected keys and values, found {type(values).__name__}.")
    return _validated(kind, values, overrides, file)


def override(kind: type[Settings], overrides: Sequence[str]) -> Settings:
    """Build settings from their defaults and ``key=value`` overrides.

    Raises:
        ConfigError: One sentence per mistake.
    """
    return _validated(kind, {}, overrides, "settings")


def words(changes: Mapping[str, Any]) -> list[str]:
    """Write dotted keys and plain values as overrides ``key=value``, the values as JSON, which is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def pairs(overrides: Sequence[str]) -> dict[str, Any]:
    """Read overrides ``key=value`` as a dictionary, the values as YAML; dotted keys are nested.

    Raises:
        ConfigError: If an override is not of this form.
    """
    values: dict[str, Any] = {}
    for word in overrides:
        _set(values, word)
    return values


def _validated(kind: type[Settings], values: dict[str, Any], overrides: Sequence[str], file: object) -> Settings:
    for change in overrides:
        _set(values, change)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_message(file, kind, item) for item in error.errors())) from None


def find(path: str | Path) -> Path:
    """Return the file itself, or the one of that name shipped in ``configs/``.

    Raises:
        ConfigError: If there is neither; the message lists what is shipped.
    """
    if Path(path).is_file():
        return Path(path)
    shipped = {str(file.relative_to(shipped_folder())): file for file in sorted(shipped_folder().rglob("*.yaml"))}
    name = str(path).removeprefix("configs/")
    if name not in shipped:
        raise ConfigError(f"{path}: no such file; shipped: {', '.join(shipped)}.")
    return shipped[name]


def shipped_folder() -> Path:
    """Return the folder of the YAML files that come with the package."""
    return Path(str(files("nowcast.configs") / "."))


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"{override!r}: overrides look like key=value.")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {parent} has no keys below it.")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: not YAML: {str(error).splitlines()[0]}.") from None


def _message(file: object, kind: type[BaseModel], item: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "settings"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = f"unknown key; known here: {', '.join(_keys(kind, item['loc'][:-1]))}"
    return f"{file}: {key}: {message}."


def _keys(kind: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """List the keys allowed at a place of a settings tree."""
    for part in place:
        if isinstance(part, str) and part in kind.model_fields:
            kind = _inner(kind.model_fields[part].annotation)
    return list(kind.model_fields)


def _inner(annotation: object) -> type[BaseModel]:
    """Find the settings class inside ``tuple[X, ...]``, ``X | None`` or ``X`` itself."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_inner(part) for part in getattr(annotation, "__args__", ()) if part is not type(None)]
    return next((part for part in found if part is not BaseModel), BaseModel)
