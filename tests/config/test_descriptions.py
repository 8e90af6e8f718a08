"""Every setting says what it is, wherever somebody looks: in ``help``, in the JSON schema, in Prefect's forms."""

from __future__ import annotations

import pkgutil
import pydoc
from collections.abc import Iterator
from importlib import import_module

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema

import nowcast
from nowcast.config import Recipe, TrainerSettings
from nowcast.config.base import Frozen


def modules(*rooms: str) -> Iterator[object]:
    """All modules of these rooms, imported."""
    for room in rooms:
        package = import_module(f"{nowcast.__name__}.{room}")
        yield package
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            yield import_module(found.name)


def below(kind: type[Frozen]) -> Iterator[type[Frozen]]:
    for one in kind.__subclasses__():
        yield one
        yield from below(one)


ROOMS = ("config", "readers", "registry", "training", "benchmark", "operations", "verification", "forecasting")
LOADED = list(modules(*ROOMS))
SETTINGS = sorted(
    {kind for kind in below(Frozen) if kind.__module__.startswith("nowcast.")}, key=lambda kind: kind.__name__
)
FLOWS = {thing.name: thing for module in modules("flows") for thing in vars(module).values() if isinstance(thing, Flow)}


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_every_field_is_described_in_the_schema_and_in_help(kind: type[Frozen]) -> None:
    schema, shown = kind.model_json_schema(), " ".join(pydoc.plain(pydoc.render_doc(kind)).replace("|", " ").split())
    assert list(schema.get("properties", {})) == list(kind.model_fields)
    for name, found in schema.get("properties", {}).items():
        assert found.get("description"), f"{name} has no string under it, or only that of its own class"
        assert not found["description"].startswith(("None:", "See ")), f"{name} is read where nothing stands beside it"
        assert f"{name}: {' '.join(found['description'].split())}" in shown
    assert "Attributes" not in schema["description"]


def test_all_classes_of_settings_are_seen() -> None:
    assert {"TrainerSettings", "Recipe", "Operations", "Benchmark", "Simulator", "Card"} <= {
        kind.__name__ for kind in SETTINGS
    }


def test_a_description_is_the_string_under_the_field() -> None:
    schema = Recipe.model_json_schema()["$defs"]["TrainerSettings"]
    assert schema["description"] == "Settings of the optimisation."
    assert schema["properties"]["patience"]["description"].startswith("Epochs without a lower validation loss")
    assert "    patience: Epochs without a lower" in (TrainerSettings.__doc__ or "")


@pytest.mark.parametrize("name", FLOWS)
def test_every_field_of_a_form_is_described(name: str) -> None:
    properties = parameter_schema(FLOWS[name]).properties
    assert [key for key, found in properties.items() if not found.get("description")] == []
