"""The collection of GS2PM: nine domains, from robots to radar, cut into samples of 10 + 10 small PNGs.

``data/<train or test>/<domain>/sample<k>`` or ``data/pam/...``, each with ``input1.png`` to ``input10.png`` and
``ground_truth1.png`` to ``ground_truth10.png``: one sequence, ``train/hko7/sample12``. A source may be the root, a
split, a domain (``data/*/hko7`` for both splits) or a sample; as domains differ in size and colour, one store holds
one domain.

What a pixel means follows from the code that wrote it:

- hko7: 70 p - 10 dBZ and shanghai2020: 70 p dBZ, p = pixel / 255, as in HKO-7 and Shanghai-2020 themselves. The
  evaluation of GS2PM takes 70 p for both.
- sevir-vil: SEVIR's own levels, which were averaged as they are when they were made smaller; 255 is no data, and
  levels beside it are too high. Rows run north.
- sevir-vis: 10,000 times the reflectance in 8 bits, of which only the remainder of 256 is left: kept as an intensity.
- kth and moving_mnist are grey, bair, human and kitticaltech coloured. In the files of kitticaltech red and blue are
  exchanged; here they are what they should be.

No times are stated. They count from 1970 in the step of the domain, one second for videos. In Shanghai-2020 the step
really doubles where the ground truth begins.

Source: github.com/miaomiaoToday/GS2PM-master.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.core.units import COLOURS, VIL_LEVELS, by_table, vil_from_level
from nowcast.readers import pixels, stills
from nowcast.readers.items import Item

TITLE = "GS2PM collection"
LICENCE = "none stated; the terms of each original data set hold"
CADENCE = None
FILE_BY_FILE = False
PATTERNS = ("input*.png", "ground_truth*.png")

FRAMES = [f"{part}{number}.png" for part in ("input", "ground_truth") for number in range(1, 11)]
SPLITS = ("train", "test")
SAMPLE = re.compile(r"sample(\d{1,9})")
SPELLINGS = {"hko": "hko7"}


@dataclass(frozen=True)
class Domain:
    """How the pictures of one domain are read."""

    quantity: str = "intensity"
    """Of a grey picture; "" for a coloured one."""
    values: np.ndarray = field(default_factory=pixels.LEVELS.copy)
    """Of the 256 levels of a pixel."""
    step: int = 1
    """Seconds from one frame to the next."""
    swapped: bool = False
    """True where red and blue are exchanged."""
    south_up: bool = False
    attrs: dict[str, float] = field(default_factory=dict)


COLOUR = Domain("")
DOMAINS = {
    "bair": COLOUR,
    "hko7": Domain("reflectivity", pixels.LEVELS * 70 - 10, 360, attrs={"zr_a": 58.53, "zr_b": 1.56}),
    "human": COLOUR,
    "kitticaltech": Domain("", swapped=True),
    "kth": Domain(),
    "moving_mnist": Domain(),
    "sevir-vil": Domain("vil", vil_from_level(np.arange(256)), 300, south_up=True),
    "sevir-vis": Domain(step=300, south_up=True),
    "shanghai2020": Domain("reflectivity", pixels.LEVELS * 70, 345),
}


def recognises(path: Path) -> bool:
    """Whether this is a frame in a folder of a sample."""
    return path.name in FRAMES and _place(path.parent) is not None


def find(source: Path) -> Iterator[Item]:
    """Find the samples of one domain by their numbers, those to train on first."""
    if not source.exists():
        raise BadInput(source, "does not exist", "check the path")
    folder = source.absolute().parent if source.is_file() else source.absolute()
    if _place(folder):
        yield _item(folder)
        return
    domains = list(_domains(folder))
    names = sorted({_name(domain) for domain in domains})
    if not names:
        raise BadInput(source, f"holds no folder train or test with one of {', '.join(DOMAINS)}", "check the path")
    if len(names) > 1:
        raise BadInput(
            source,
            f"holds {len(names)} domains ({', '.join(names)}), a store one",
            f"name one, such as 'data/*/{names[0]}'",
        )
    samples = [sample for domain in domains for sample in _samples(domain)]
    if not samples:
        raise BadInput(domains[0], "holds no folder sample1, sample2 or the like", "fetch it again")
    yield from map(_item, samples)


def read(item: Item) -> xr.Dataset:
    """Read one sample: ``reflectivity`` in dBZ, ``vil`` in kg m-2, ``intensity``, or ``red``, ``green``, ``blue``.

    Raises:
        BadInput: If a picture is missing or is not what it should be.
    """
    folder = item.path.parent
    if (place := _place(folder)) is None or item.key != "/".join(place):
        raise BadInput(item.path, f"is not of sample {item.key or '(none named)'}", "take items from find")
    split, name, _ = place
    domain = DOMAINS[name]
    take = stills.GREY if domain.quantity else stills.COLOUR
    levels = stills.stack([folder / name for name in FRAMES], "PNG", take=take)
    if domain.quantity:
        fields = {domain.quantity: by_table(levels, domain.values)}
    else:
        colours = COLOURS[::-1] if domain.swapped else COLOURS
        fields = {name: by_table(levels[..., colours.index(name)], domain.values) for name in COLOURS}
    grid = pixels.picture(levels.shape[1:3])
    if domain.south_up:
        grid = Grid(grid.crs, grid.y[::-1], grid.x)
    attrs = {"title": f"{TITLE}: {name}", "source": folder.name, "licence": LICENCE} | domain.attrs
    time = np.datetime64(0, "s") + np.arange(len(FRAMES)) * domain.step
    cube = make(
        fields,
        time,
        grid,
        sequence=item.key,
        split=split,
        attrs=attrs,
        levels=VIL_LEVELS if domain.quantity == "vil" else domain.values,
    )
    return check(cube, item)


# --- folders --------------------------------------------------------------------------------------


def _name(domain: Path) -> str:
    """Name a domain in the spelling of the code."""
    return SPELLINGS.get(domain.name, domain.name)


def _place(sample: Path) -> tuple[str, str, str] | None:
    """Split, domain and sample that a folder is, from its name and those above it."""
    domain = sample.absolute().parent
    known = SAMPLE.fullmatch(sample.name) and _name(domain) in DOMAINS and domain.parent.name in SPLITS
    return (domain.parent.name, _name(domain), sample.name) if known else None


def _domains(folder: Path) -> Iterator[Path]:
    if _name(folder) in DOMAINS and folder.parent.name in SPLITS:
        yield folder
        return
    roots = (folder, folder / "data", folder / "pam", folder / "data" / "pam")
    splits = [folder] if folder.name in SPLITS else [root / split for root in roots for split in SPLITS]
    for split in filter(Path.is_dir, splits):
        yield from (domain for domain in sorted(split.iterdir()) if _name(domain) in DOMAINS and domain.is_dir())


def _samples(domain: Path) -> list[Path]:
    """List the folders of samples by number; what kind of entry each is comes with the list, and none is opened."""
    with os.scandir(domain) as entries:
        names = [entry.name for entry in entries if SAMPLE.fullmatch(entry.name) and entry.is_dir()]
    return [domain / name for name in sorted(names, key=lambda name: int(name.removeprefix("sample")))]


def _item(sample: Path) -> Item:
    return Item(sample / FRAMES[0], "/".join(_place(sample) or ()))
