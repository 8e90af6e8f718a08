"""FMI: composites of Finland as GeoTIFF, in pixels of 250 m: reflectivity (dbz) and rain rate (rr).

One file is one frame of up to 36 million pixels: 145 MB, more than an item of other sources. Its tag
GDAL_METADATA tells time, quantity, gain and offset, and the codes of no data and of no echo. Rasters
of FMI's web service have no such tag: their name tells product and time (``202406011205_suomi_rr_eureffin.tif``),
and a pixel of ``rr`` is 0.01 mm/h, one of ``dbz`` half a dBZ from -32.

Sources: the tags of the files themselves; FMI, Open data manual: radar data
(en.ilmatieteenlaitos.fi/open-data-manual-radar-data).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast.core.errors import BadInput
from nowcast.readers import forecasts, geotiff, stamps
from nowcast.readers.items import Item, files
from nowcast.readers.rasters import ECHO, RAIN, Codes

TITLE = "FMI radar composite of Finland"
LICENCE = "CC BY 4.0, Finnish Meteorological Institute (FMI)"
CADENCE = 300
PATTERNS = ("*.tif",)

TAGS = {"observation time", "gain", "offset", "nodata"}
UNITS = {"dbz": ECHO, "mm/h": RAIN, "mm h-1": RAIN}
SERVICE = re.compile(r"(?:^|[_-])(rr|dbz)_eureffin", re.IGNORECASE)
"""In the name of a raster of the web service."""
SERVED = {
    "rr": Codes(np.dtype(np.uint16), RAIN, 0.01, missing=frozenset({65535.0})),
    "dbz": Codes(np.dtype(np.uint8), ECHO, 0.5, -32.0, missing=frozenset({255.0})),
}


def recognises(path: Path) -> bool:
    """Whether a GeoTIFF has FMI's tags, or a name of FMI's service."""
    with geotiff.opened(path) as dataset:
        return set(geotiff.tags(dataset)) >= TAGS or bool(SERVICE.search(path.name))


def find(source: Path) -> Iterator[Item]:
    """Find the composites of a file or folder, in time order."""
    yield from map(Item, files(source, *PATTERNS))


def read(item: Item) -> xr.Dataset:
    """Read one composite: ``reflectivity`` in dBZ, -32 where nothing echoed, or ``rainfall_rate``.

    Raises:
        BadInput: If the file is no such composite.
    """
    with geotiff.opened(item.path) as dataset:
        about = geotiff.tags(dataset)
        forecasts.refuse_stated(item.path, about)
        time = stamps.told(about.get("observation time", ""), item.path) or stamps.in_name(item.path.name, item.path)
        if time is None:
            raise BadInput(item.path, "does not say when it was measured", "add yyyymmddHHMM to its name")
        how = _codes(item.path, about, np.dtype(dataset.dtypes[0]))
        served = SERVICE.search(item.path.name)
        return geotiff.cube(
            item.path,
            dataset,
            how,
            time,
            geotiff.grid(item.path, dataset),
            cadence=CADENCE,
            product=about.get("quantity") or (served[1].lower() if served else ""),
            attrs={"title": TITLE, "licence": LICENCE, "institution": "FMI"},
        )


def _codes(path: Path, about: Mapping[str, str], dtype: np.dtype) -> Codes:
    """Find what the pixels mean: from the tags, or from what FMI's manual says of the product in the name."""
    if set(about) >= TAGS:
        what, unit = about.get("quantity", "something"), about.get("unit", "")
        # GDAL keeps no units of tags, but for those that it could not take apart
        name = UNITS.get(unit.lower()) or (ECHO if not unit and "reflectivity" in what.lower() else None)
        if name is None:
            raise BadInput(path, f"holds {what} in {unit or 'no unit'}", "give reflectivity (dbz) or rain rate (rr)")
        how = {key: float(about[key]) for key in ("gain", "offset", "nodata", "undetect") if key in about}
        return Codes(
            dtype, name, how["gain"], how["offset"], missing=frozenset({how["nodata"]}), undetect=how.get("undetect")
        )
    product = SERVICE.search(path.name)
    served = SERVED[product[1].lower()] if product else None
    if served is None or served.dtype != dtype:
        raise BadInput(path, f"has no tags that tell what its {dtype} pixels mean", "use the reader geotiff")
    return served
