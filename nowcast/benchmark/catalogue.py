"""Tables of the networks that can be trained and of the sources that can be read.

Counting multiplications takes a second or more per size, so they are kept in a file beside this one, which a
test compares with the networks; ``python -m nowcast.benchmark.catalogue`` writes it anew.
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
"""Size that only tests use."""


def networks() -> list[dict[str, object]]:
    """Describe every network and published size in a row: costs, lengths, grid, paper and licence."""
    return [_row(name, size) for name, size in sizes()]


def sizes() -> list[tuple[str, str]]:
    """List (network, size) of all networks, without the debug sizes; the size is empty where there is only one."""
    return [(name, size) for name in MODELS for size in model_class(name).SIZES or ("",) if size != DEBUG]


def count(name: str, size: str) -> int:
    """Count the multiply-accumulate operations of a forecast from one sequence."""
    network = _on_meta_device(name, size)
    grid = network.grid or (SIDE, SIDE)
    return macs(network, (1, network.in_steps, network.channels, *grid))


def _full_name(name: str, size: str) -> str:
    return f"{name}:{size}" if size else name


def _published(name: str, size: str) -> Published:
    return model_class(name).PUBLISHED.get(size) or Published(0)


def _on_meta_device(name: str, size: str) -> Nowcaster:
    """Build a network at its published lengths on the meta device, without memory for its weights."""
    paper = _published(name, size)
    lengths = {"in_steps": paper.in_steps, "out_steps": paper.out_steps, "channels": paper.channels}
    with torch.device("meta"):
        return build(_full_name(name, size), **lengths).eval()


def _row(name: str, size: str) -> dict[str, object]:
    kind, network = model_class(name), _on_meta_device(name, size)
    full, lengths = _full_name(name, size), _published(name, size)
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
    """Read the stored counts of multiply-accumulate operations, by name of the network."""
    counts: dict[str, int] = json.loads(COUNTED.read_text())
    return counts


def sources() -> list[dict[str, object]]:
    """Describe every reader in a row: title, cadence and licence."""
    rows: list[dict[str, object]] = []
    for name in READERS:
        reader = get(name)
        step = f"{reader.CADENCE // 60} min" if reader.CADENCE else "in the files"
        rows.append({"reader": name, "what": reader.TITLE, "step": step, "licence": reader.LICENCE})
    return rows


if __name__ == "__main__":
    counts = {_full_name(*one): count(*one) for one in sizes() if model_class(one[0]).trainable}
    COUNTED.write_text(json.dumps(counts, indent=1) + "\n")
