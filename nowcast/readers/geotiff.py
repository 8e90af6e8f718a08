"""GeoTIFF: rain rate or reflectivity in one band, whoever wrote it. One file is one frame.

What it is: the tags ``standard_name``, ``quantity``, ``long_name`` or the description of the band, else a
word of the file's name (``202406011205_dbz.tif``, ``2023-01-01-00-00_ROMA_SRI.tif``,
``20240110T0030Z_MSC_Radar-Composite_MMHR_1km.tif``). Of several bands that say what they are the first known
one is taken; OPERA's, of which the second is a quality, do not say it (``OPERA@20260810T0000@0@DBZH.tiff``).
Its unit: that of the band, or the tag ``units``; without one it is mm/h, dBZ or, of ``acrr``, mm, but integers of
8 or 16 bits need one, or a scale: they may be anything, such as colours. Sums of rain become rates over the tag
``accumulation_period`` (``PT1H``); OPERA's are those of an hour. When: a tag that gives a time, else
yyyymmddHHMM[SS] in the name, else TIFFTAG_DATETIME, which often is the time of writing. Scale, offset and
nodata are those of the band, else the tags Gain, Offset, Nodata and Undetect, also where GDAL_METADATA
holds them as XML; floats of -9999000 and -8888000 are OPERA's codes for no data and no echo. A mask in the file
is kept to. Seconds between frames follow from the first files of the folder, as a hint.

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

from nowcast.core.cube import Identity, check, make
from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import forecasts, rasters, stamps
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
OPERA = re.compile(r"OPERA@\d{8}T\d{4}@\d+@([A-Z]+)")
NODATA, UNDETECT = -9999000.0, -8888000.0
"""Of OPERA; nothing else is measured as such numbers."""
HOUR = 3600
AMOUNTS = ("acrr", "precip_accum")
"""Words that mean sums, where no unit is stated."""
COLOURS = ("palette", "red", "green", "blue", "cyan", "magenta", "yellow", "black", "hue", "saturation", "lightness")
"""What GDAL calls bands that are pictures."""
XML = re.compile(r'<Item name="([^"]*)"([^>]*)>([^<]*)</Item>')
XML_UNIT = re.compile(r'\bunits?="([^"]*)"')
QUANTITY_TAGS = ("standard_name", "quantity", "long_name", "description")
UNIT_TAGS = ("units", "unit")
TIME_TAGS = ("observation time", "time", "valid_time", "datetime", "date_time", "timestamp", "nominal_time")
NODATA_TAGS, LAST_TIME_TAG = ("nodata", "missing_value", "_fillvalue"), "tifftag_datetime"


def recognises(path: Path) -> bool:
    """Whether a GeoTIFF has a projection and a band of a known quantity."""
    with opened(path) as dataset:
        return dataset.crs is not None and bool(_bands(path, dataset))


def find(source: Path) -> Iterator[Item]:
    """Find the rasters of a file or folder, in the order of their names."""
    yield from map(Item, files(source, *PATTERNS))


def read(item: Item) -> xr.Dataset:
    """Read one raster: ``rainfall_rate`` or ``reflectivity``.

    Raises:
        BadInput: If the file does not say clearly what it holds, where and when.
    """
    path = item.path
    with opened(path) as dataset:
        bands = _bands(path, dataset)
        if not bands:
            raise _unknown(path, dataset)
        choices = {band: _identity(path, tags(dataset, band), *known) for band, known in bands.items()}
        band = next((band for band, one in choices.items() if one.fits(item.product)), next(iter(choices)))
        about, (label, name) = tags(dataset, band), bands[band]
        kind, factor = rasters.measured(path, label, name, _unit(about, label, name))
        if kind == "amount":
            if not choices[band].accumulation:
                raise BadInput(
                    path, f"does not say how long {label} fell", "add the tag accumulation_period, such as PT1H"
                )
            factor *= HOUR / choices[band].accumulation
        licence = about.get("license") or about.get("licence") or LICENCE
        return cube(
            path,
            dataset,
            codes(dataset, about, name, factor, band=band),
            _time(path, about),
            grid(path, dataset),
            band=band,
            cadence=rasters.step(path, _when),
            product=label,
            accumulation=choices[band].accumulation,
            attrs={"title": TITLE, "licence": licence},
        )


# --- which band, and what it is -------------------------------------------------------------------


def _bands(path: Path, dataset: DatasetReader) -> dict[int, tuple[str, str]]:
    """Find the bands that can be read: the word that tells what each is, and the quantity it stands for."""
    said = {band: _said(tags(dataset, band, own=dataset.count > 1)) for band in range(1, dataset.count + 1)}
    known = {band: found for band, found in said.items() if found is not None}
    if not known and (dataset.count == 1 or OPERA.match(path.name)) and (found := _in_name(path)):
        known = {1: found}
    return known


def _said(about: Mapping[str, str]) -> tuple[str, str] | None:
    if any(about.get(key, "").lower() == "dbz" for key in UNIT_TAGS):
        return "dBZ", ECHO
    words = (about.get(key, "").lower().replace(" ", "_") for key in QUANTITY_TAGS)
    return next(((word, NAMES[word]) for word in words if word in NAMES), None)


def _in_name(path: Path) -> tuple[str, str] | None:
    words = re.split(r"[^a-z]+", path.stem.lower())
    found = (word for word in (*map("_".join, pairwise(words)), *words) if word in NAMES)
    return next(((word, NAMES[word]) for word in found), None)


def _unknown(path: Path, dataset: DatasetReader) -> BadInput:
    if dataset.count == 1:
        return BadInput(
            path,
            "does not say that it holds rain rate or reflectivity",
            "add a tag standard_name, or rr or dbz to its name",
        )
    size = "x".join(map(str, dataset.shape))
    return BadInput(
        path,
        f"has {dataset.count} bands of {size} pixels, none of which is said to be rain rate or reflectivity",
        "describe its band as rainfall_rate or reflectivity, or extract it: gdal_translate -b 1",
    )


def _unit(about: Mapping[str, str], label: str, name: str) -> str:
    usual = "dBZ" if name == ECHO else "mm" if label in AMOUNTS else "mm h-1"
    return next((about[key] for key in UNIT_TAGS if key in about), usual)


def _identity(path: Path, about: Mapping[str, str], label: str, name: str) -> Identity:
    """Name what a band holds, and the period of a sum; 0 where it is none, or none is stated."""
    known = rasters.unit(_unit(about, label, name))
    period = 0
    if known and known[0] == "amount":
        period = rasters.duration(about.get("accumulation_period", "")) or (HOUR if OPERA.match(path.name) else 0)
    return Identity(label, (name,), period, "")


def _time(path: Path, about: Mapping[str, str]) -> np.datetime64:
    forecasts.refuse_stated(path, about)
    tagged = (stamps.told(about[key], path) for key in TIME_TAGS if key in about)
    moment = next(filter(None, tagged), None) or stamps.in_name(path.name, path)
    moment = moment or stamps.told(about.get(LAST_TIME_TAG, ""), path)
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


def tags(dataset: DatasetReader, band: int = 1, *, own: bool = False) -> dict[str, str]:
    """All tags of a band and, unless only its ``own`` are asked for, of the file; names in small letters.

    Those that hold XML are taken apart.
    """
    found = {**({} if own else dataset.tags()), **dataset.tags(band)}
    for name, unit, text in XML.findall(found.pop("GDAL_METADATA", "")):
        found[name] = text
        if name.lower() == "quantity" and (match := XML_UNIT.search(unit)):
            found["unit"] = match[1]
    for key, value in (("units", dataset.units[band - 1]), ("description", dataset.descriptions[band - 1])):
        if value:
            found.setdefault(key, value)
    return {key.lower(): str(value).strip() for key, value in found.items()}


def codes(dataset: DatasetReader, about: Mapping[str, str], name: str, factor: float, *, band: int = 1) -> Codes:
    """How the band's numbers become values.

    Raises:
        BadInput: If it has colours, or integers of which nothing is said.
    """
    how = {"scale_factor": dataset.scales[band - 1], "add_offset": dataset.offsets[band - 1]}
    if tuple(how.values()) == (1.0, 0.0):
        how = {"scale_factor": float(about.get("gain", 1)), "add_offset": float(about.get("offset", 0))}
    dtype = np.dtype(dataset.dtypes[band - 1])
    scaled = tuple(how.values()) != (1.0, 0.0) or "gain" in about
    _refuse_colours(dataset, about, dtype, band, scaled=scaled)
    absent = [dataset.nodatavals[band - 1], *(float(about[key]) for key in NODATA_TAGS if about.get(key))]
    undetect = float(about["undetect"]) if about.get("undetect") else None
    if dtype.kind == "f":
        absent.append(NODATA)
        undetect = UNDETECT if undetect is None else undetect
    missing = frozenset(code for code in absent if code is not None and not np.isnan(code))
    scale, offset = map(rasters.number, how.values())
    return Codes(dtype, name, scale, offset, factor, missing, undetect=undetect)


def _refuse_colours(
    dataset: DatasetReader, about: Mapping[str, str], dtype: np.dtype, band: int, *, scaled: bool
) -> None:
    if scaled:
        return
    if dataset.colorinterp[band - 1].name in COLOURS:
        raise BadInput(dataset.name, "is a picture in colours, not what was measured", "get the original data")
    if dtype.kind in "iu" and dtype.itemsize <= 2 and not any(key in about for key in UNIT_TAGS):
        raise BadInput(
            dataset.name,
            f"holds {dtype} with neither scale nor unit",
            "add them, such as gdal_edit.py -scale 0.5 -offset -32 -units dBZ, or give the original data",
        )


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
    if min(dataset.shape) < 2 or pixels > MOST_PIXELS:
        raise BadInput(path, f"has {'x'.join(map(str, dataset.shape))} pixels", "give a frame")
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
    accumulation: int = 0,
    band: int = 1,
    attrs: Mapping[str, object],
) -> xr.Dataset:
    """Read a band as a Cube of one frame.

    Raises:
        BadInput: If its numbers are complex.
    """
    if how.dtype.kind not in "iuf":
        raise BadInput(path, f"holds numbers of type {how.dtype}", "give integers or floats")
    raw = dataset.read(band)[None]
    how.check(path, raw)
    values = how.decode(raw)
    if [flag.name for flag in dataset.mask_flag_enums[band - 1]] == ["per_dataset"]:  # no transparency of a picture
        values[0, dataset.read_masks(band) == 0] = np.nan
    packing = how.packing
    result = make(
        {how.name: values},
        [time],
        where,
        cadence=cadence,
        quantum=packing.get("quantum"),
        floor=packing.get("floor"),
        product=product,
        accumulation=accumulation,
        attrs=dict(attrs) | {"source": path.name},
    )
    return check(result, path)
