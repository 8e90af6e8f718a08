"""Quality control at the door: what is wrong with a frame, noted beside it; the values are never altered."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import xarray as xr

from nowcast.cube import BadInput, channels
from nowcast.units import quantity

FLAGS = {"mostly_missing": 1, "dry": 2, "out_of_range": 4}
"""Bits of a frame's status. A dry frame is a good frame: the flag lets training thin them out."""

MOST = 0.95
"""A frame is mostly missing where a larger share of its pixels is. Masks and rims alone take up to 0.5."""
CLOCK_SLACK = timedelta(minutes=10)
RANGES = {
    "rainfall_rate": (0.0, 500.0),
    "reflectivity": (-64.0, 80.0),
    "vil": (0.0, 100.0),
    "visible_reflectance": (0.0, 2.0),
    "brightness_temperature_069": (-130.0, 80.0),
    "brightness_temperature_107": (-130.0, 80.0),
    "lightning_flashes": (0.0, 1e5),
}
"""Lowest and highest value that can be weather; beyond are clutter, interference and decoding errors."""


def inspect_frames(cube: xr.Dataset, *, now: datetime | None = None, where: object = "cube",
                   most: float = MOST, slack: timedelta = CLOCK_SLACK) -> xr.DataArray:  # fmt: skip
    """Looks at every frame of a Cube.

    Args:
        cube: Frames of one item.
        now: Time of arrival, UTC; None: the clock.
        where: Named in errors.
        most: Share of missing pixels above which a frame is mostly missing.
        slack: How far in the future a frame may be.

    Returns:
        ``status(time)``, int8: the sum of its ``FLAGS``, described by CF's flag attributes. Flags of
        several channels add up; a frame is dry if all its channels are that can be.

    Raises:
        BadInput: If not one pixel was measured in the whole item, or a frame is from the future.
    """
    _refuse_future(cube, now or datetime.now(UTC), slack, where)
    frames = {name: cube[name].values for name in channels(cube)}
    missing = np.stack([np.isnan(values).mean(axis=(1, 2)) for values in frames.values()])
    if (missing == 1).all():
        raise BadInput(where, "has no measured pixel", "wait for the next frame or check the radar")
    wet = np.stack([_wet(name, values) for name, values in frames.items()]).any(axis=0)
    wild = np.stack([_wild(name, values) for name, values in frames.items()]).any(axis=0)
    bits = {"mostly_missing": (missing > most).any(axis=0), "dry": ~wet & (missing < 1).all(axis=0),
            "out_of_range": wild}  # fmt: skip
    status = sum(bit.astype(np.int8) * np.int8(FLAGS[name]) for name, bit in bits.items())
    return xr.DataArray(status, dims="time", name="status", attrs={
        "long_name": "status of the frame", "standard_name": "status_flag",
        "flag_masks": np.array(list(FLAGS.values()), np.int8), "flag_meanings": " ".join(FLAGS),
    })  # fmt: skip


def _refuse_future(cube: xr.Dataset, now: datetime, slack: timedelta, where: object) -> None:
    limit = np.datetime64((now + slack).astimezone(UTC).replace(tzinfo=None), "s")
    latest = cube["time"].values.max().astype("datetime64[s]")
    if latest > limit:
        raise BadInput(where, f"is from the future ({latest} UTC)", "check the clocks of sender and receiver")


def _wet(name: str, values: np.ndarray) -> np.ndarray:
    """Per frame: any pixel at or above the lowest event threshold; always where the quantity has none."""
    thresholds = quantity(name).thresholds
    return np.any(values >= thresholds[0], axis=(1, 2)) if thresholds else np.ones(len(values), bool)


def _wild(name: str, values: np.ndarray) -> np.ndarray:
    low, high = RANGES[name]
    return np.any((values < low) | (values > high), axis=(1, 2))
