"""Scores as table rows."""

from __future__ import annotations

import numpy as np
import xarray as xr

from nowcast.verification.scores import derive, per_model

COLUMNS = ("mse", "mae", "ssim")
PERCEPTUAL = "lpips"
"""Score that is a column only where it was computed."""


def table(scores: xr.Dataset, *, by_lead: bool = False) -> list[dict[str, object]]:
    """Pool scores, one row per model, or per model and lead time.

    Args:
        scores: A Scores Dataset.
        by_lead: Keep the lead times separate.

    Returns:
        Rows with ``model``, ``CSI≥t`` for every threshold, errors, SSIM, and the frames and pixels
        compared; NaN where a score is undefined.
    """
    if not (scores["state"] == "ok").any():
        return []
    models = per_model(scores)
    if not by_lead:
        models = models.sum("lead_time").expand_dims("lead_time")
    columns = (*COLUMNS, PERCEPTUAL) if models["lpips_frames"].any() else COLUMNS
    ratios = derive(models, ("csi", *columns), over=())
    rows = []
    for model in models["model"].values.tolist():
        for step in range(models.sizes["lead_time"]):
            here = ratios.sel(model=model).isel(lead_time=step)
            rows.append(_row(model, here, models.sel(model=model).isel(lead_time=step), by_lead))
    return rows


def _row(model: str, ratios: xr.Dataset, sums: xr.Dataset, by_lead: bool) -> dict[str, object]:
    row: dict[str, object] = {"model": model}
    if by_lead:
        row["lead min"] = int(ratios["lead_time"].values / np.timedelta64(1, "m"))
    for limit, value in zip(ratios["threshold"].values, ratios["csi"].values, strict=True):
        row[f"CSI≥{limit:g}"] = float(value)
    row |= {name.upper(): float(ratios[name].values) for name in (*COLUMNS, PERCEPTUAL) if name in ratios}
    return row | {"frames": int(sums["frames"].values), "n": int(sums["n"].values)}
