"""Files that hold a forecast and no observation, told by their names: the same for all readers.

A forecast that is taken for an observation becomes the truth that others are made from and judged by. Contents are
looked at where they are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from nowcast.core.errors import BadInput

LEADS = (
    re.compile(r"_(\d{3})-hd5$", re.IGNORECASE),  # DWD: composite_rv_20251203_0800_005-hd5
    re.compile(r"(?:^|_)[A-Z]{2}\d{10}_(\d{3})(?:\.|$)"),  # DWD: DE1200_RV1807010000_005
    re.compile(r"\+(\d{1,3})(?:min|m)(?=[._-]|$)", re.IGNORECASE),  # rr_202406011200+030min.tif
    re.compile(r"[._-](?:T?\+|lead[_-]?)(\d{1,3})(?:min|m|h)?(?=[._-]|$)", re.IGNORECASE),  # rr_202406011200_+30.nc
)
"""Minutes from the time in a name to the time that the file holds."""


def lead(name: str) -> int:
    """Find how many minutes ahead a file looks, as its name says; 0 of analyses and where it does not say."""
    return next((int(match[1]) for pattern in LEADS for match in pattern.finditer(name) if int(match[1])), 0)


def refuse(path: Path, name: str | None = None) -> None:
    """Refuse a file whose name says that it holds a forecast.

    Args:
        path: The file.
        name: Of it inside of a wrapping.

    Raises:
        BadInput: If it does.
    """
    if ahead := lead(name or path.name):
        raise BadInput(
            path, f"is a forecast for {ahead} minutes ahead, as its name says", "give the analysis, of lead 000"
        )


STATED = ("lead_time", "leadtime", "lead time", "forecast_period", "forecast_hour", "grib_forecast_seconds")
"""Tags that state how far ahead a file looks, in small letters."""


def refuse_stated(path: Path, about: Mapping[str, str]) -> None:
    """Refuse a file whose tags say that it holds a forecast.

    Raises:
        BadInput: If they do.
    """
    for key in STATED:
        number = re.match(r"\s*[-+]?(?:PT)?(\d+(?:\.\d+)?)", about.get(key, ""))
        if number and float(number[1]):
            raise BadInput(path, f"is a forecast: its {key} is {about[key]}", "give the analysis")
