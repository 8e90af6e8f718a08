"""The layer rules of the house, held by walking the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "nowcast.units": 1,
    "nowcast.grid": 1,
    "nowcast.config": 1,
    "nowcast.scores": 1,
    "nowcast.colours": 1,
    "nowcast.boundaries": 1,
    "nowcast.torchvision_cpu": 1,
    "models": 1,
    "nowcast.coded": 2,
    "nowcast.cube": 2,
    "nowcast.ring": 2,
    "nowcast.packing": 2,
    "nowcast.chunks": 2,
    "nowcast.layout": 2,
    "nowcast.checkpoint": 2,
    "nowcast.costs": 2,
    "nowcast.maps": 2,
    "nowcast.pictures": 2,
    "nowcast.charts": 2,
    "nowcast.leaderboard": 2,
    "nowcast.verdict": 2,
    "nowcast.precedence": 2,
    "nowcast.readers": 3,
    "nowcast.moving": 3,
    "nowcast.quality": 3,
    "nowcast.store": 3,
    "nowcast.registry": 3,
    "nowcast.exchange": 3,
    "nowcast.lifecycle": 3,
    "nowcast.prepared": 4,
    "nowcast.taking": 4,
    "nowcast.parallel": 4,
    "nowcast.ingest": 4,
    "nowcast.forecast": 4,
    "nowcast.verify": 4,
    "nowcast.publish": 4,
    "nowcast.windows": 4,
    "nowcast.serve": 4,
    "nowcast.inspection": 4,
    "nowcast.spans": 4,
    "nowcast.exam": 4,
    "nowcast.safeguards": 4,
    "nowcast.tracking": 4,
    "nowcast.cycle": 5,
    "nowcast.train": 5,
    "nowcast.benchmark": 5,
    "nowcast.contest": 5,
    "nowcast.shadow": 5,
    "nowcast.yielding": 5,
    "nowcast.linear": 5,
    "nowcast.scorecard": 5,
    "nowcast.tuning": 5,
    "nowcast.demo": 6,
    "nowcast.doctor": 6,
    "nowcast.cli": 6,
    "flows": 6,
}
VERBS = {"nowcast.ingest", "nowcast.forecast", "nowcast.verify", "nowcast.publish", "nowcast.train"}
ALLOWED_IN_MODELS = {"models", "torch", "numpy", "cv2", "pysteps"}
FORBIDDEN_IN_FLOWS = {"torch", "xarray", "matplotlib", "numpy", "zarr", "icechunk"}
FORBIDDEN_IN_LIBRARY = {"prefect", "flows"}


def modules() -> list[Path]:
    return [path for package in ("models", "nowcast", "flows") for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def unit_of(module: str) -> str | None:
    """The row of the table that a module belongs to."""
    return max((unit for unit in FLOORS if module == unit or module.startswith(f"{unit}.")), key=len, default=None)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_every_module_stands_on_a_floor_and_imports_only_downwards(path: Path) -> None:
    module = name_of(path)
    unit = unit_of(module)
    if module == "nowcast":
        return
    assert unit, f"{module} is not in the table of floors"
    for name in imports(path):
        other = unit_of(name)
        if other is None or other == unit:
            continue
        assert FLOORS[other] <= FLOORS[unit], f"{module} (floor {FLOORS[unit]}) imports {name} (floor {FLOORS[other]})"
        assert not {unit, other} <= VERBS, f"the verb {module} imports the verb {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "models").rglob("*.py")), ids=name_of)
def test_networks_need_torch_only(path: Path) -> None:
    import sys

    foreign = {top(name) for name in imports(path)} - ALLOWED_IN_MODELS - set(sys.stdlib_module_names)
    assert not foreign


@pytest.mark.parametrize("path", sorted((ROOT / "flows").rglob("*.py")), ids=name_of)
def test_flows_hold_no_science(path: Path) -> None:
    assert not {top(name) for name in imports(path)} & FORBIDDEN_IN_FLOWS


@pytest.mark.parametrize("path", sorted((ROOT / "nowcast").rglob("*.py")), ids=name_of)
def test_the_library_knows_no_orchestrator(path: Path) -> None:
    if name_of(path) != "nowcast.cli":  # `nowcast up` and `nowcast run` are doors to the flows
        assert not {top(name) for name in imports(path)} & FORBIDDEN_IN_LIBRARY
