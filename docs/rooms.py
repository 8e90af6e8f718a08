"""The picture of the rooms, drawn from the import graph and the layers of ``pyproject.toml``.

A box is a room, a row is a floor, a line is at least one import. Tests do not count.
"""

from __future__ import annotations

import tomllib
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
BOX, GAP, FLOOR, MARGIN = (118, 34), 26, 84, 20
PURPOSES = {
    "cli": "command line",
    "flows": "when, retries, slots",
    "operations": "one cycle, promotion",
    "benchmark": "networks compared",
    "training": "weights are found",
    "web": "the page",
    "data": "frames as batches",
    "ingestion": "files into stores",
    "forecasting": "frames to forecasts",
    "plotting": "maps and charts",
    "readers": "one file per source",
    "registry": "checkpoints",
    "verification": "scores",
    "store": "versioned arrays",
    "config": "settings",
    "core": "units, grid, cube",
    "models": "one file per paper",
}
"""A few words below the name of a room; a room without them shows its name alone."""


def floors() -> list[list[str]]:
    """The rooms of each floor, from the top, as import-linter holds them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    return [[room.strip("() ") for room in layer.replace(":", "|").split("|")] for layer in layers]


def arrows(rooms: list[str]) -> list[tuple[str, str, int]]:
    """Importing room, imported room, and by how many modules."""
    graph = grimp.build_graph("nowcast", include_external_packages=False, cache_dir=None)
    counted: dict[tuple[str, str], int] = {}
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            pair = _room(module), _room(other)
            if pair[0] != pair[1] and set(pair) <= set(rooms):
                counted[pair] = counted.get(pair, 0) + 1
    return [(*pair, count) for pair, count in sorted(counted.items())]


def svg() -> str:
    """The picture as SVG, in the colours of the page around it."""
    storeys = floors()
    places = _places(storeys)
    width = max(len(storey) for storey in storeys) * (BOX[0] + GAP) - GAP + 2 * MARGIN
    height = (len(storeys) - 1) * FLOOR + BOX[1] + 2 * MARGIN
    lines = [_line(places[start], places[end], count) for start, end, count in arrows(list(places))]
    boxes = [_box(room, *place) for room, place in places.items()]
    title = "<title>Rooms of nowcast: a line is an import, from the upper room to the lower one</title>"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    return "\n".join([head, title, *lines, *boxes, "</svg>", ""])


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _places(storeys: list[list[str]]) -> dict[str, tuple[float, float]]:
    """Upper left corners; every floor is centred."""
    most = max(len(storey) for storey in storeys)
    places = {}
    for level, storey in enumerate(storeys):
        left = MARGIN + (most - len(storey)) * (BOX[0] + GAP) / 2
        for number, room in enumerate(storey):
            places[room] = (left + number * (BOX[0] + GAP), MARGIN + level * FLOOR)
    return places


def _line(start: tuple[float, float], end: tuple[float, float], count: int) -> str:
    """A curve from below one box to above another; thicker where more modules import."""
    x1, y1, x2, y2 = start[0] + BOX[0] / 2, start[1] + BOX[1], end[0] + BOX[0] / 2, end[1]
    bend = (y2 - y1) / 2
    return (
        f'<path d="M{x1:g} {y1:g}C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}" fill="none" '
        f'stroke="#5c6bc0" stroke-opacity=".45" stroke-width="{min(4, 0.7 + 0.15 * count):.2f}"/>'
    )


def _box(room: str, x: float, y: float) -> str:
    middle, words = x + BOX[0] / 2, PURPOSES.get(room, "")
    name = (
        f'<text x="{middle:g}" y="{y + (15 if words else 21):g}" font-size="13" font-weight="600" '
        f'text-anchor="middle" fill="#1a237e">{escape(room)}</text>'
    )
    below = (
        f'<text x="{middle:g}" y="{y + 28:g}" font-size="9.5" text-anchor="middle" '
        f'fill="#37474f">{escape(words)}</text>'
    )
    box = f'<rect x="{x:g}" y="{y:g}" width="{BOX[0]}" height="{BOX[1]}" rx="5" fill="#e8eaf6" stroke="#3949ab"/>'
    return "\n".join([box, name, *([below] if words else [])])


if __name__ == "__main__":
    print(svg())
