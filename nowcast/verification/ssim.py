"""Structural similarity of forecast and observation.

SSIM of Wang et al. (2004), doi:10.1109/TIP.2003.819861, as scikit-image computes it: Gaussian windows of 11 x 11
pixels with a standard deviation of 1.5, constants 0.01 and 0.03, population covariance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import xarray as xr

from nowcast.core.errors import OptionError

WINDOW, SIGMA = 11, 1.5
STRIP = 64
"""Rows of windows that are computed together."""


def similarity(forecast: np.ndarray, observed: np.ndarray, *, data_range: float) -> dict[str, np.ndarray]:
    """Compute the SSIM of every frame, averaged over the windows in which both fields are complete.

    Args:
        forecast: (lead, y, x), NaN = no data.
        observed: The same shape and unit.
        data_range: Difference of the highest and lowest possible value in that unit; SSIM depends on it.

    Returns:
        float64 ``ssim`` (lead), 0 where no window is complete; int64 ``frames`` (lead), 1 where one is.

    Raises:
        OptionError: If ``data_range`` is not positive.
    """
    if not data_range > 0:
        raise OptionError(f"data_range must be positive, got {data_range}.")
    pairs = zip(forecast, observed, strict=True)
    values = np.asarray([_mean_ssim(*pair, data_range) for pair in pairs], np.float64)
    return {"ssim": np.nan_to_num(values), "frames": np.isfinite(values).astype(np.int64)}


def _mean_ssim(forecast: np.ndarray, observed: np.ndarray, data_range: float) -> float:
    # Strips fit the processor's cache, which is twice as fast as whole frames: 30 instead of 60 ms for 765 x 700.
    overlap = WINDOW - 1
    tops = range(0, max(len(forecast) - overlap, 1), STRIP)
    rows = [slice(top, top + STRIP + overlap) for top in tops]
    total, windows = np.sum([_ssim_sum(forecast[row], observed[row], data_range) for row in rows], axis=0)
    return float(total / windows) if windows else np.nan


def _ssim_sum(forecast: np.ndarray, observed: np.ndarray, data_range: float) -> tuple[float, int]:
    """Sum SSIM over the complete windows of one strip, and count them."""
    from skimage import metrics  # of the extra "verify": publishing and charts do without

    structural_similarity: Callable[..., Any] = metrics.structural_similarity  # scikit-image states no types
    missing = np.isnan(forecast) | np.isnan(observed)
    # Beyond the strip there is no data either: a border of "missing" trims its edge.
    window = np.ones((WINDOW, WINDOW), np.uint8)
    broken = cv2.dilate(missing.astype(np.uint8), window, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    complete = broken == 0
    if not complete.any():
        return 0.0, 0
    first, second = (np.where(missing, 0, field) for field in (forecast, observed))
    _, values = structural_similarity(
        first,
        second,
        data_range=data_range,
        gaussian_weights=True,
        sigma=SIGMA,
        use_sample_covariance=False,
        full=True,
    )
    return float(values[complete].sum(dtype=np.float64)), int(complete.sum())


def ssim(scores: xr.Dataset, *, over: Sequence[str]) -> xr.DataArray:
    """Structural similarity: mean SSIM of the frames that have one; [-1, 1], 1 is perfect."""
    pooled = scores[["ssim", "frames"]].sum(over)
    return pooled["ssim"] / pooled["frames"].where(pooled["frames"] > 0)
