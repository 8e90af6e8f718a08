"""Frames scored as a published table has them; see ``nowcast.verification.protocols``.

``sums`` adds up what a protocol measures on every frame, ``derive`` divides by the number of frames and makes ratios.
Missing pixels of a picture are black in both frames; those of radar are left out, as by the masks of HKO-7 and SEVIR.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from nowcast.core.units import get_quantity
from nowcast.verification.protocols import COUNTS, LIMIT, protocol

FRAMES = "frames"


def pixels(values: np.ndarray, name: str, *, quantity: str) -> np.ndarray:
    """Bring physical values of a quantity to the scale of a protocol, without clipping them.

    Args:
        values: Of any shape, NaN = no data.
        name: Key of ``PROTOCOLS``.
        quantity: What they measure.

    Raises:
        OptionError: If the protocol is unknown, or scores another quantity.
    """
    scale = protocol(name).pixels
    return scale(values, quantity) if scale else get_quantity(quantity).scaling.encode(values, clip=False)


def sums(forecast: np.ndarray, observed: np.ndarray, name: str, *, lpips: bool = False) -> dict[str, np.ndarray]:
    """Measure frames as a protocol does.

    Args:
        forecast: (lead, C, H, W) or (lead, H, W) on the scale of the protocol; NaN = no data.
        observed: The same.
        name: Key of ``PROTOCOLS``.
        lpips: Measure the perceptual distance too, if the protocol has one; needs its weights.

    Returns:
        float64 (lead[, limit]) for every measurement, and ``frames``, 1 for every lead time. They may be added up.

    Raises:
        OptionError: If the protocol is unknown.
    """
    found = protocol(name)
    pairs = [_filled(*pair, mask=bool(found.limits)) for pair in zip(forecast, observed, strict=True)]
    rows = [found.measure(*pair) for pair in pairs]
    if lpips and found.perceptual:
        from nowcast.verification.lpips import distance  # loads a network

        for row, (made, seen) in zip(rows, pairs, strict=True):
            row["lpips"] = distance(found.perceptual(made), found.perceptual(seen))
    table = {key: np.asarray([row[key] for row in rows], np.float64) for key in rows[0]}
    return table | {FRAMES: np.ones(len(rows))}


def _filled(forecast: np.ndarray, observed: np.ndarray, *, mask: bool) -> tuple[np.ndarray, np.ndarray]:
    """Give frames their channel, and black pixels where they have none; with ``mask`` an observation stays missing."""
    made, there = (frame if frame.ndim == 3 else frame[None] for frame in (forecast, observed))
    unseen = np.isnan(there)
    if mask:
        return np.where(np.isnan(made), np.float32(0), made), there
    return np.where(np.isnan(made) | unseen, np.float32(0), made), np.where(unseen, np.float32(0), there)


def derive(totals: xr.Dataset, name: str) -> xr.Dataset:
    """Make the scores of a protocol of sums that were added up over all clips.

    Args:
        totals: Measurements and ``frames`` of ``sums``, (lead_time[, limit]).
        name: Key of ``PROTOCOLS``.

    Returns:
        Scores (lead_time[, limit]); those of the whole table are ``overall`` of them.

    Raises:
        OptionError: If the protocol is unknown.
    """
    found = protocol(name)
    means = totals.drop_vars(FRAMES) / totals[FRAMES]
    wanted = found.names(lpips="lpips" in means)
    derivations = {key: found.scores[key].derived for key in wanted}
    return xr.Dataset({key: make(means) if make else means[key] for key, make in derivations.items()})


def overall(totals: xr.Dataset, name: str) -> xr.Dataset:
    """Make the figures of the table: of all lead times together, or the mean over them; see ``derive``."""
    if protocol(name).by_lead:
        return derive(totals, name).mean("lead_time")
    return derive(totals.sum("lead_time"), name)


def score_as(
    forecast: np.ndarray, observed: np.ndarray, protocol: str, *, quantity: str = "intensity", lpips: bool = False
) -> dict[str, float]:
    """Score forecasts by the rules of a published table.

    Args:
        forecast: (clip, lead, H, W) or (clip, lead, C, H, W) in the unit of the quantity: [0, 1] for pictures.
        observed: The same.
        protocol: ``moving-mnist``, ``kth``, ``gs2pm``, ``openstl``, ``hko7`` or ``sevir``.
        quantity: What they measure.
        lpips: The perceptual distance too; needs its weights.

    Returns:
        The figures of the table by name; those of events by name and limit, ``csi≥0.5 mm/h``.

    Raises:
        OptionError: If the protocol is unknown, or scores another quantity.
    """
    made, seen = (
        pixels(np.asarray(frames, np.float32), protocol, quantity=quantity) for frames in (forecast, observed)
    )
    clips = [sums(*pair, protocol, lpips=lpips) for pair in zip(made, seen, strict=True)]
    table = {key: np.sum([clip[key] for clip in clips], axis=0) for key in clips[0]}
    return figures(overall(dataset(table, protocol), protocol), protocol)


def dataset(table: Mapping[str, np.ndarray], name: str) -> xr.Dataset:
    """Give sums (..., lead_time[, limit]) of one protocol their dimensions: ``window`` where there is one more."""

    def dims(key: str, values: np.ndarray) -> tuple[str, ...]:
        inner = ("lead_time", LIMIT) if key in COUNTS else ("lead_time",)
        return ("window",) * (values.ndim - len(inner)) + inner

    labels = {LIMIT: list(protocol(name).labels)} if protocol(name).labels else {}
    return xr.Dataset({key: (dims(key, values), values) for key, values in table.items()}, labels)


def figures(scores: xr.Dataset, name: str) -> dict[str, float]:
    """List scores without lead times by name, and by name and limit: ``csi≥0.5 mm/h``."""
    found: dict[str, float] = {}
    for key in protocol(name).scores:
        if key in scores and LIMIT in scores[key].dims:
            values = zip(scores[LIMIT].values.tolist(), scores[key].values.tolist(), strict=True)
            found |= {f"{key}≥{label}": value for label, value in values}
        elif key in scores:
            found[key] = float(scores[key])
    return found
