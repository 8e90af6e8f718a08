"""The registries as rows: what can be trained, what can be read.

Counting multiplications takes a second or more per size, so they are kept in a file beside this one, which a
test holds to the networks; ``python -m nowcast.benchmark.catalogue`` writes it anew.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch

from nowcast.benchmark.costs import macs, parameters
from nowcast.models import MODELS, build, model_class
from nowcast.models.nowcaster import Nowcaster, Published
from nowcast.readers import READERS, get

SIDE = 64
"""Pixels of the frames that multiplications are counted for; networks on one grid are counted on theirs."""
COUNTED = Path(str(files(__package__) / "macs.json"))
DEBUG = "debug"
"""Size that serves tests alone."""


def networks() -> list[dict[str, object]]:
    """One row per model and published size: what it costs, what it takes, where it comes from."""
    return [_row(name, size) for name, size in sizes()]


def sizes() -> list[tuple[str, str]]:
    """Every network in every size that is of use; the size is empty where there is but one."""
    return [(name, size) for name in MODELS for size in model_class(name).SIZES or ("",) if size != DEBUG]


def count(name: str, size: str) -> int:
    """Multiplications of a forecast from one sequence, counted anew."""
    network = _sketch(name, size)
    grid = network.grid or (SIDE, SIDE)
    return macs(network, (1, network.in_steps, network.channels, *grid))


def _full(name: str, size: str) -> str:
    return f"{name}:{size}" if size else name


def _lengths(name: str, size: str) -> Published:
    return model_class(name).PUBLISHED.get(size) or Published(0)


def _sketch(name: str, size: str) -> Nowcaster:
    """The network at its published lengths, without memory for its weights."""
    paper = _lengths(name, size)
    lengths = {"in_steps": paper.in_steps, "out_steps": paper.out_steps, "channels": paper.channels}
    with torch.device("meta"):
        return build(_full(name, size), **lengths).eval()


def _row(name: str, size: str) -> dict[str, object]:
    kind, full, lengths, network = model_class(name), _full(name, size), _lengths(name, size), _sketch(name, size)
    return {
        "model": full,
        "parameters": parameters(network),
        "published": lengths.parameters or "",
        "unused": lengths.unused or "",
        "GMACs": f"{(counted().get(full) or count(name, size)) / 1e9:.2f}" if kind.trainable else "",
        "lengths": f"{lengths.in_steps} -> {lengths.out_steps}, {'any' if kind.free_lengths else 'out: any'}",
        "grid": "{} x {}, tiled elsewhere".format(*network.grid) if network.grid else "any",
        "what": (kind.__doc__ or "").splitlines()[0],
        "paper": kind.PAPER,
        "licence": kind.LICENCE,
        "options": ", ".join(kind.options()),
    }


@cache
def counted() -> dict[str, int]:
    """The kept counts of all sizes of networks that learn."""
    return json.loads(COUNTED.read_text())


def sources() -> list[dict[str, object]]:
    """One row per reader: title, cadence, licence."""
    rows: list[dict[str, object]] = []
    for name in READERS:
        reader = get(name)
        step = f"{reader.CADENCE // 60} min" if reader.CADENCE else "in the files"
        rows.append({"reader": name, "what": reader.TITLE, "step": step, "licence": reader.LICENCE})
    return rows


if __name__ == "__main__":
    counts = {_full(*one): count(*one) for one in sizes() if model_class(one[0]).trainable}
    COUNTED.write_text(json.dumps(counts, indent=1) + "\n")
