"""One tree of errors, in one file: the command line shows these as a sentence."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest

from nowcast.core import errors
from nowcast.core.errors import BadInput, FromFuture, NowcastError
from tests.paths import ROOT

HOME = ROOT / "nowcast" / "core" / "errors.py"
SOURCES = [path for folder in ("nowcast", "models", "flows") for path in sorted((ROOT / folder).rglob("*.py"))]
OURS = [found for found in vars(errors).values() if isinstance(found, type)]
RAISED = ("Error", "Exception", "Warning", *(found.__name__ for found in OURS))
"""How the base of a class that is raised is called."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_errors_are_declared_in_one_place(path: Path) -> None:
    classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    found = [node.name for node in classes if any(ast.unparse(base).endswith(RAISED) for base in node.bases)]
    assert path == HOME or not found


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))], ids=name_of)
def test_they_are_imported_from_there(path: Path) -> None:
    ours = {found.__name__ for found in OURS}
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    assert not [
        node.module
        for node in imports
        if ours & {alias.name for alias in node.names} and not node.level and node.module != "nowcast.core.errors"
    ]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_all_are_of_one_tree(kind: type[Exception]) -> None:
    assert issubclass(kind, NowcastError)
    assert kind is NowcastError or f"-- {kind.__name__} " in str(errors.__doc__)


@pytest.mark.parametrize(
    "kind", [kind for kind in OURS if not issubclass(kind, BadInput)], ids=lambda kind: kind.__name__
)
def test_they_travel_between_processes(kind: type[Exception]) -> None:
    again = pickle.loads(pickle.dumps(kind("what is wrong; what to do.")))
    assert (type(again), str(again)) == (kind, "what is wrong; what to do.")


def test_a_frame_from_the_future_travels_with_its_time() -> None:
    again = pickle.loads(pickle.dumps(FromFuture("a.h5", "2030-01-01", 7.0)))
    assert (type(again), str(again).startswith("a.h5: is from the future (2030-01-01 UTC)"), again.until) == (
        FromFuture,
        True,
        7.0,
    )


def test_a_bad_input_travels_with_its_parts() -> None:
    again = pickle.loads(pickle.dumps(BadInput(Path("a.h5"), "is torn", "fetch it again")))
    assert (again.where, again.fault, again.remedy) == ("a.h5", "is torn", "fetch it again")
    assert str(again) == "a.h5: is torn; fetch it again."
