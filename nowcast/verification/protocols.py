"""Scores as published tables have them, by the name of their protocol.

Papers and their code disagree about what "MSE", "SSIM" or "LPIPS" is: sums or means, on [0, 1], 255 or whole numbers,
with one window or another. A protocol repeats what the code behind a published table computes, oddities included, so
that a figure of ours can stand beside a figure of that table. Its scores are comparable with nothing else, and least
of all with those of ``nowcast.verification.scores``.

Every function here takes one frame, forecast and observed, as (C, H, W) on the [0, 1] of the published pictures; a
forecast may lie beyond. ``nowcast.verification.published`` scores many frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import xarray as xr

from nowcast.core.errors import OptionError
from nowcast.core.units import PICTURES, level_from_vil, reflectivity_from_rate

Measured = dict[str, "float | np.ndarray"]
LIMIT = "limit"
"""Dimension of the counts and ratios of events."""
COUNTS = ("hits", "misses", "false_alarms", "negatives")


@dataclass(frozen=True)
class Score:
    """One column of a published table."""

    heading: str
    style: str = ".3f"
    """Format of its values."""
    derived: Callable[[xr.Dataset], xr.DataArray] | None = None
    """Makes it of the means of all measurements; None: it is the mean of the measurement of its name."""


@dataclass(frozen=True)
class Protocol:
    """How one published table was made."""

    source: str
    """Whose table, and the code that makes it."""
    rule: str
    """What its scores are, in one sentence."""
    measure: Callable[[np.ndarray, np.ndarray], Measured]
    scores: Mapping[str, Score]
    perceptual: Callable[[np.ndarray], np.ndarray] | None = None
    """Frame as the LPIPS network of that code gets it, in place of [-1, 1]; None: no LPIPS."""
    limits: tuple[float, ...] = ()
    """Limits of events, on the scale of the protocol."""
    labels: tuple[str, ...] = ()
    """The limits as the table states them."""
    pixels: Callable[[np.ndarray, str], np.ndarray] | None = None
    """Physical values of a quantity on the protocol's scale; None: by the quantity's own scaling."""
    by_lead: bool = False
    """Ratios are made for every lead time, and their mean is the figure of the table; False: of the sum of all."""

    def names(self, *, lpips: bool) -> list[str]:
        """List the scores, with or without the perceptual distance."""
        return [name for name in self.scores if lpips or name != "lpips"]


# --- measurements of one frame --------------------------------------------------------------------


def _bytes(frame: np.ndarray) -> np.ndarray:
    """Truncate a frame to 8 bits, as ``np.uint8(frame * 255)``."""
    truncated: np.ndarray = (np.clip(frame, 0, 1).astype(np.float32) * np.float32(255)).astype(np.uint8)
    return truncated


def _psnr(forecast: np.ndarray, observed: np.ndarray, *, peak: float) -> float:
    """Compute the peak signal-to-noise ratio in dB; infinite for equal frames."""
    error = float(np.square(forecast.astype(np.float64) - observed).mean())
    return 10 * np.log10(peak**2 / error) if error else np.inf


def _ssim(forecast: np.ndarray, observed: np.ndarray, *, data_range: float) -> float:
    """Compute SSIM as scikit-image does by default: windows of 7 x 7 equal weights, mean over the channels."""
    from skimage import metrics  # of the extra "verify"

    compute: Callable[..., Any] = metrics.structural_similarity  # scikit-image states no types
    return float(np.mean([compute(*pair, data_range=data_range) for pair in zip(forecast, observed, strict=True)]))


def _sharpness(frame: np.ndarray) -> float:
    """Return the largest absolute Laplacian of an 8-bit frame, at most 255."""
    return float(max(cv2.convertScaleAbs(cv2.Laplacian(channel, cv2.CV_16S)).max() for channel in frame))


def _moving_mnist(forecast: np.ndarray, observed: np.ndarray) -> Measured:
    forecast = np.clip(forecast, 0, 1)
    error = forecast.astype(np.float64) - observed
    whole = _bytes(forecast), _bytes(observed)
    return {
        "mse": float(np.square(error).sum()),
        "mae": float(np.abs(error).sum()),
        "psnr": _psnr(*whole, peak=255),
        "ssim": _ssim(*whole, data_range=255),
        "sharpness": _sharpness(whole[0]),
    }


def _kth(forecast: np.ndarray, observed: np.ndarray) -> Measured:
    forecast = np.clip(forecast, 0, 1)
    error = float(np.square(forecast.astype(np.float64) - observed).mean())
    side = observed.shape[1] * observed.shape[2]
    return {
        "mse": error * side,
        "psnr": _psnr(forecast, observed, peak=1),
        "ssim": _ssim(forecast, observed, data_range=2),
    }


def _openstl(forecast: np.ndarray, observed: np.ndarray) -> Measured:
    error, clipped = forecast.astype(np.float64) - observed, np.clip(forecast, 0, 1)
    return {
        "mse": float(np.square(error).sum()),
        "mae": float(np.abs(error).sum()),
        "psnr": _psnr(clipped, observed, peak=1),
        "ssim": _ssim(clipped, observed, data_range=2),
    }


def _gs2pm(forecast: np.ndarray, observed: np.ndarray) -> Measured:
    error = 255 * (forecast.astype(np.float64) - observed)
    return {
        # Meant for (batch, time, ...), this mean is over channels and rows, and the sum over columns.
        "mse": float(np.square(error).mean(axis=(0, 1)).sum()) / 1e6,
        "psnr": _psnr(255 * forecast, 255 * observed, peak=255),
        "ssim": _ssim(forecast[:1], observed[:1], data_range=1),
    }


# --- radar ----------------------------------------------------------------------------------------

HKO_ZR = (58.53, 1.56)
HKO_RATES = (0.5, 2.0, 5.0, 10.0, 30.0)
HKO_WEIGHTS = (1.0, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Of pixels below the first rate, from the first, the second and so on; by what was observed."""


def _hko_pixel(rate: float) -> float:
    a, b = HKO_ZR
    return float((10 * b * np.log10(rate) + 10 * np.log10(a) + 10) / 70)


HKO_PIXELS = tuple(_hko_pixel(rate) for rate in HKO_RATES)
ROUNDING = 0.01
"""What float32 arithmetic may add to one of SEVIR's levels, which events are counted from."""
SEVIR_LEVELS = (16.0, 74.0, 133.0, 160.0, 181.0, 219.0)


def _events(forecast: np.ndarray, observed: np.ndarray, seen: np.ndarray, limits: Sequence[float]) -> Measured:
    """Count hits, misses, false alarms and correct negatives of the seen pixels, (limit,) each."""
    warned = np.stack([forecast[seen] >= limit for limit in limits])
    there = np.stack([observed[seen] >= limit for limit in limits])
    tables = (warned & there, ~warned & there, warned & ~there, ~warned & ~there)
    return {name: table.sum(axis=1).astype(np.float64) for name, table in zip(COUNTS, tables, strict=True)}


def _hko7(forecast: np.ndarray, observed: np.ndarray) -> Measured:
    """Measure a frame; pixels without an observation are those that the official mask leaves out."""
    seen = np.isfinite(observed)
    made, there = (np.nan_to_num(frame.astype(np.float64)) for frame in (forecast, observed))
    weight = np.asarray(HKO_WEIGHTS)[np.searchsorted(HKO_PIXELS, there, side="right")] * seen
    error = made - there
    squared, absolute = np.square(error), np.abs(error)
    return _events(made, there, seen, HKO_PIXELS) | {
        "mse": float((seen * squared).sum()),
        "mae": float((seen * absolute).sum()),
        "b_mse": float((weight * squared).sum()),
        "b_mae": float((weight * absolute).sum()),
        "gdl": _gradient_difference(made, there, seen),
    }


def _gradient_difference(forecast: np.ndarray, observed: np.ndarray, seen: np.ndarray) -> float:
    """Sum the differences of absolute gradients, along rows and columns, where both their pixels are seen."""
    total = 0.0
    for axis in (1, 2):
        ahead, behind = (np.delete(seen, end, axis) for end in (0, -1))
        steps = [np.abs(np.diff(frame, axis=axis)) for frame in (forecast, observed)]
        total += float((np.abs(steps[0] - steps[1]) * (ahead & behind)).sum())
    return total


def _sevir(forecast: np.ndarray, observed: np.ndarray) -> Measured:
    """Measure a frame of SEVIR's levels; pixels without an observation count nowhere."""
    seen = np.isfinite(observed)
    made, there = np.nan_to_num(255 * forecast.astype(np.float64)), np.nan_to_num(255 * observed.astype(np.float64))
    error = (made - there)[seen]
    return _events(made, there, seen, SEVIR_LEVELS) | {
        "mse": float(np.square(error).mean()) if error.size else 0.0,
        "mae": float(np.abs(error).mean()) if error.size else 0.0,
    }


def _ratio(part: xr.DataArray, whole: xr.DataArray) -> xr.DataArray:
    return part / whole.where(whole > 0)


def _csi(mean: xr.Dataset) -> xr.DataArray:
    return _ratio(mean["hits"], mean["hits"] + mean["misses"] + mean["false_alarms"])


def _pod(mean: xr.Dataset) -> xr.DataArray:
    return _ratio(mean["hits"], mean["hits"] + mean["misses"])


def _success(mean: xr.Dataset) -> xr.DataArray:
    return _ratio(mean["hits"], mean["hits"] + mean["false_alarms"])


def _far(mean: xr.Dataset) -> xr.DataArray:
    return 1 - _success(mean)


def _bias(mean: xr.Dataset) -> xr.DataArray:
    return _ratio(mean["hits"] + mean["false_alarms"], mean["hits"] + mean["misses"])


def _hss(mean: xr.Dataset) -> xr.DataArray:
    hits, misses, false_alarms, negatives = (mean[name] for name in COUNTS)
    chance = (hits + misses) * (misses + negatives) + (hits + false_alarms) * (false_alarms + negatives)
    return _ratio(2 * (hits * negatives - false_alarms * misses), chance)


def _mean_csi(mean: xr.Dataset) -> xr.DataArray:
    return _csi(mean).mean(LIMIT)


def _rmse(mean: xr.Dataset) -> xr.DataArray:
    return mean["mse"] ** 0.5


# --- scales ---------------------------------------------------------------------------------------


def _hko_pixels(values: np.ndarray, quantity: str) -> np.ndarray:
    if quantity == "rainfall_rate":
        values, quantity = reflectivity_from_rate(values, zr=HKO_ZR), "reflectivity"
    return (values + 10) / 70 if quantity == "reflectivity" else _picture(values, quantity, "hko7", "reflectivity")


def _sevir_pixels(values: np.ndarray, quantity: str) -> np.ndarray:
    if quantity != "vil":
        return _picture(values, quantity, "sevir", "vil")
    levels = level_from_vil(values)
    whole = np.rint(levels)
    return np.where(np.abs(levels - whole) < ROUNDING, whole, levels) / 255


def _picture(values: np.ndarray, quantity: str, protocol: str, wanted: str) -> np.ndarray:
    if quantity not in PICTURES:
        raise OptionError(f"Protocol {protocol} scores {wanted}, or pictures of it, and not {quantity}.")
    return values


def _signed(frame: np.ndarray) -> np.ndarray:
    return 2 * _clipped(frame) - 1


def _clipped(frame: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(frame, 0, 1))


def _twice_255(frame: np.ndarray) -> np.ndarray:
    return 510 * frame - 1


# --- the table ------------------------------------------------------------------------------------

SUMMED = "sums over the pixels of a frame"
PROTOCOLS = {
    "moving-mnist": Protocol(
        "CMS-LSTM, E3D-LSTM and PredRNN on Moving MNIST",
        f"frames clipped to [0, 1]; MSE and MAE are {SUMMED}; PSNR, SSIM (7 x 7 windows) and sharpness (the largest "
        "absolute Laplacian of the forecast) of frames truncated to 8 bits; LPIPS, PredRNN's, of frames left on [0, 1]",
        _moving_mnist,
        {
            "mse": Score("MSE", ".2f"),
            "mae": Score("MAE", ".2f"),
            "psnr": Score("PSNR", ".2f"),
            "ssim": Score("SSIM"),
            "sharpness": Score("sharpness", ".1f"),
            "lpips": Score("LPIPS"),
        },
        _clipped,
    ),
    "kth": Protocol(
        "LMC-Memory on KTH and Moving MNIST",
        "frames clipped to [0, 1]; MSE is the mean over pixels times height times width; PSNR with a peak of 1; SSIM "
        "with 7 x 7 windows and a data range of 2; LPIPS, times 1000, of frames left on [0, 1]",
        _kth,
        {
            "mse": Score("MSE", ".2f"),
            "psnr": Score("PSNR", ".2f"),
            "ssim": Score("SSIM"),
            "lpips": Score("LPIPS ×1000", ".1f", lambda mean: 1000 * mean["lpips"]),
        },
        _clipped,
    ),
    "openstl": Protocol(
        "OpenSTL, and SwinLSTM but for its SSIM of frames that are not clipped",
        f"MSE and MAE are {SUMMED} and channels of frames as they leave the network, RMSE the root of that MSE; of "
        "frames clipped to [0, 1]: PSNR with a peak of 1, SSIM with 7 x 7 windows and a data range of 2, LPIPS",
        _openstl,
        {
            "mse": Score("MSE", ".2f"),
            "mae": Score("MAE", ".2f"),
            "rmse": Score("RMSE", ".2f", _rmse),
            "psnr": Score("PSNR", ".2f"),
            "ssim": Score("SSIM", ".4f"),
            "lpips": Score("LPIPS", ".4f"),
        },
        _signed,
    ),
    "gs2pm": Protocol(
        "GS2PM (utils/evaluation_simple.py)",
        "frames as they leave the network, times 255: MSE is the mean over channels and rows, summed over columns, "
        "divided by a million as in its table, so that it grows with the width; PSNR with a peak of 255; SSIM of the "
        "first channel with 7 x 7 windows and a data range of 1; LPIPS of frames multiplied by 255 twice",
        _gs2pm,
        {
            "mse": Score("MSE"),
            "psnr": Score("PSNR", ".2f"),
            "ssim": Score("SSIM"),
            "lpips": Score("LPIPS"),
        },
        _twice_255,
    ),
    "hko7": Protocol(
        "HKO-7 (nowcasting/hko_evaluation.py)",
        f"pixels (dBZ + 10) / 70 where the mask has an observation; events by Z = 58.53 R^1.56; counts of all frames "
        f"of a lead time, then ratios, then the mean over lead times; MSE, MAE, B-MSE, B-MAE and GDL are {SUMMED}",
        _hko7,
        {
            "csi": Score("CSI", derived=_csi),
            "hss": Score("HSS", derived=_hss),
            "pod": Score("POD", derived=_pod),
            "far": Score("FAR", derived=_far),
            "mse": Score("MSE", ".1f"),
            "mae": Score("MAE", ".1f"),
            "b_mse": Score("B-MSE", ".1f"),
            "b_mae": Score("B-MAE", ".1f"),
            "gdl": Score("GDL", ".1f"),
        },
        limits=HKO_PIXELS,
        labels=tuple(f"{rate:g} mm/h" for rate in HKO_RATES),
        pixels=_hko_pixels,
        by_lead=True,
    ),
    "sevir": Protocol(
        "SEVIR: neurips-2020-sevir by lead time, Earthformer for all of them",
        "levels 0 to 255 of the original files, the lowest six as 0; counts of all frames, then ratios; CSI-M is the "
        "mean of the six CSI; MSE and MAE are means over pixels, in levels",
        _sevir,
        {
            "csi_m": Score("CSI-M", derived=_mean_csi),
            "csi": Score("CSI", derived=_csi),
            "pod": Score("POD", derived=_pod),
            "sucr": Score("SUCR", derived=_success),
            "bias": Score("BIAS", derived=_bias),
            "mse": Score("MSE", ".1f"),
            "mae": Score("MAE", ".2f"),
        },
        limits=SEVIR_LEVELS,
        labels=tuple(f"{level:g}" for level in SEVIR_LEVELS),
        pixels=_sevir_pixels,
    ),
}
"""Names of protocols -> how their tables were made."""


def protocol(name: str) -> Protocol:
    """Look a protocol up by its name.

    Raises:
        OptionError: If it is unknown; the message lists the known ones.
    """
    if name not in PROTOCOLS:
        raise OptionError(f"Unknown protocol {name!r}; known: {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
