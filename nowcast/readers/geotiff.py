"""GeoTIFF: rain rate or reflectivity in one band, whoever wrote it. One file is one frame.

What it is: the tags ``standard_name``, ``quantity``, ``long_name`` or the description of the band, else a
word of the file's name (``202406011205_dbz.tif``, ``2023-01-01-00-00_ROMA_SRI.tif``). Its unit: that of the
band, or the tag ``units``; without one it is mm/h or dBZ. When: a tag that gives a time, else
yyyymmddHHMM[SS] in the name, else TIFFTAG_DATETIME, which often is the time of writing. Scale, offset and
nodata are those of the band, else the tags Gain, Offset, Nodata and Undetect, also where GDAL_METADATA
holds them as XML. Seconds between frames follow from the first files of the folder.

Projection and place are the file's own; side files are not looked at. Source: OGC GeoTIFF standard,
version 1.1; GDAL's GTiff driver.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from pyproj import CRS
from pyproj.exceptions import CRSError

from nowcast.core.cube import check, make
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import rasters
from nowcast.readers.decoding import decoding, optional
from nowcast.readers.items import Item, files
from nowcast.readers.rasters import ECHO, MOST_PIXELS, NAMES, Codes

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

TITLE = "Gridded rain or reflectivity in GeoTIFF"
LICENCE = "as stated by the producer"
PATTERNS = ("*.tif", "*.tiff")
CADENCE = None
"""Differs by source: every cube carries its own, see ``rasters.step``."""

FORM = "a GeoTIFF"
XML = re.compile(r'<Item name="([^"]*)"([^>]*)>([^<]*)</Item>')
XML_UNIT = re.compile(r'\bunits?="([^"]*)"')
QUANTITY_TAGS = ("standard_name", "quantity", "long_name", "description")
UNIT_TAGS = ("units", "unit")
TIME_TAGS = ("observation time", "time", "valid_time", "datetime", "date_time", "timestamp", "nominal_time")
NODATA_TAGS, LAST_TIME_TAG = ("nodata", "missing_value", "_fillvalue"), "tifftag_datetime"


def recognises(path: Path) -> bool:
    """Whether a GeoTIFF has one band, a projection and a known quantity."""
    with opened(path) as dataset:
        about = tags(dataset)
        return dataset.count == 1 and dataset.crs is not None and _named(path, about) is not None


def find(source: Path) -> Iterator[Item]:
    """Find the rasters of a file or folder, in the order of their names."""
    yield from map(Item, files(source, *PATTERNS))


def read(item: Item) -> xr.Dataset:
    """Read one raster: ``rainfall_rate`` or ``reflectivity``.

    Raises:
        BadInput: If the file does not say clearly what it holds, where and when.
    """
    with opened(item.path) as dataset:
        about = tags(dataset)
        known = _named(item.path, about)
        if known is None:
            raise BadInput(
                item.path,
                "does not say that it holds rain rate or reflectivity",
                "add a tag standard_name, or rr or dbz to its name",
            )
        label, name = known
        stated = next((about[key] for key in UNIT_TAGS if key in about), "dBZ" if name == ECHO else "mm h-1")
        kind, factor = rasters.measured(item.path, label, name, stated)
        if kind == "amount":
            raise BadInput(item.path, f"holds an amount of rain in {stated}", "give a rate or a reflectivity")
        time = _time(item.path, about)
        licence = about.get("license") or about.get("licence") or LICENCE
        return cube(
            item.path,
            dataset,
            codes(dataset, about, name, factor),
            time,
            grid(item.path, dataset),
            cadence=rasters.step(item.path, _when),
            product=label,
            attrs={"title": TITLE, "licence": licence},
        )


def _named(path: Path, about: Mapping[str, str]) -> tuple[str, str] | None:
    """Find the word that tells what a raster is, and the quantity it stands for."""
    if any(about.get(key, "").lower() == "dbz" for key in UNIT_TAGS):
        return "dBZ", ECHO
    for key in QUANTITY_TAGS:
        word = about.get(key, "").lower().replace(" ", "_")
        if word in NAMES:
            return word, NAMES[word]
    words = re.split(r"[^a-z]+", path.stem.lower())
    for word in (*map("_".join, pairwise(words)), *words):
        if word in NAMES:
            return word, NAMES[word]
    return None


def _time(path: Path, about: Mapping[str, str]) -> np.datetime64:
    texts = [*(about[key] for key in TIME_TAGS if key in about), path.name, about.get(LAST_TIME_TAG, "")]
    moment = next(filter(None, map(rasters.stamp, texts)), None)
    if moment is None:
        raise BadInput(path, "does not say when it was measured", "add yyyymmddHHMM to its name")
    return moment


def _when(path: Path) -> np.datetime64:
    with opened(path) as dataset:
        return _time(path, tags(dataset))


# --- what every GeoTIFF has -----------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[DatasetReader]:
    """Open a GeoTIFF and nothing else that GDAL could read.

    Raises:
        BadInput: If it is none, or anything inside the block fails.
        ModuleNotFoundError: If rasterio is not installed.
    """
    rasterio = optional("rasterio", extra="geotiff")
    with decoding(path, FORM, rasterio.errors.RasterioError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file without a place is refused by ``grid``
        path.open("rb").close()
        # no list of the folder, however long, is needed to open one file
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), rasterio.open(path, driver="GTiff") as dataset:
            yield dataset


def tags(dataset: DatasetReader) -> dict[str, str]:
    """All tags of the file and its band, names in small letters; those that hold XML are taken apart."""
    found = {**dataset.tags(), **dataset.tags(1)}
    for name, unit, text in XML.findall(found.pop("GDAL_METADATA", "")):
        found[name] = text
        if name.lower() == "quantity" and (match := XML_UNIT.search(unit)):
            found["unit"] = match[1]
    for key, value in (("units", dataset.units[0]), ("description", dataset.descriptions[0])):
        if value:
            found.setdefault(key, value)
    return {key.lower(): str(value).strip() for key, value in found.items()}


def codes(dataset: DatasetReader, about: Mapping[str, str], name: str, factor: float) -> Codes:
    """How the band's numbers become values."""
    band = {"scale_factor": dataset.scales[0], "add_offset": dataset.offsets[0]}
    if tuple(band.values()) == (1.0, 0.0):
        band = {"scale_factor": float(about.get("gain", 1)), "add_offset": float(about.get("offset", 0))}
    absent = [dataset.nodata, *(float(about[key]) for key in NODATA_TAGS if about.get(key))]
    missing = frozenset(code for code in absent if code is not None and not np.isnan(code))
    dtype = np.dtype(dataset.dtypes[0])
    scale, offset = map(rasters.number, band.values())
    undetect = float(about["undetect"]) if about.get("undetect") else None
    return Codes(dtype, name, scale, offset, factor, missing, undetect=undetect)


def grid(path: Path, dataset: DatasetReader) -> Grid:
    """Where the pixels are.

    Raises:
        BadInput: If the file does not say, or rows and columns do not follow its axes.
    """
    width, shear, left, turn, height, top = tuple(dataset.transform)[:6]
    if dataset.crs is None or dataset.transform.is_identity:
        raise BadInput(path, "has no projection or place", "georeference it")
    if shear or turn or width <= 0 or not height:
        raise BadInput(path, "is rotated against its projection", "warp it to north up")
    pixels = max(math.prod(dataset.shape), math.prod(dataset.block_shapes[0]))
    if dataset.count != 1 or min(dataset.shape) < 2 or pixels > MOST_PIXELS:
        size = "x".join(map(str, dataset.shape))
        raise BadInput(path, f"has {dataset.count} bands of {size} pixels", "give one band of a frame")
    crs, factor = _projection(dataset.crs.to_wkt(), dataset.crs.to_epsg(confidence_threshold=100))
    rows, columns = dataset.shape
    y = (top + height * (np.arange(rows) + 0.5)) * factor
    x = (left + width * (np.arange(columns) + 0.5)) * factor
    return Grid(crs, y, rasters.longitudes(path, x) if crs.is_geographic else x)


@lru_cache(maxsize=16)
def _projection(wkt: str, epsg: int | None) -> tuple[CRS, float]:
    """Read the projection by its EPSG code where it has one: its WKT differs with the version of GDAL."""
    if epsg:
        with suppress(CRSError):
            return rasters.in_metres(CRS.from_epsg(epsg))
    return rasters.in_metres(CRS.from_wkt(wkt))


def cube(
    path: Path,
    dataset: DatasetReader,
    how: Codes,
    time: np.datetime64,
    where: Grid,
    *,
    cadence: int,
    product: str,
    attrs: Mapping[str, object],
) -> xr.Dataset:
    """Read the band as a Cube of one frame.

    Raises:
        BadInput: If its numbers are complex.
    """
    if how.dtype.kind not in "iuf":
        raise BadInput(path, f"holds numbers of type {how.dtype}", "give integers or floats")
    values = how.decode(dataset.read(1)[None])
    packing = how.packing
    result = make(
        {how.name: values},
        [time],
        where,
        cadence=cadence,
        quantum=packing.get("quantum"),
        floor=packing.get("floor"),
        product=product,
        attrs=dict(attrs) | {"source": path.name},
    )
    return check(result, path)
