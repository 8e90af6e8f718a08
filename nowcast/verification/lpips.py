"""LPIPS: the perceptual distance of two fields, by the features of an image network.

Zhang et al. (2018), arXiv:1801.03924, version 0.1 with the AlexNet backbone.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from nowcast.core.errors import ConfigError, OptionError
from nowcast.core.torchvision_cpu import import_torchvision
from nowcast.core.units import Scaling

if TYPE_CHECKING:
    from lpips import LPIPS

SETTING = "NOWCAST_LPIPS_WEIGHTS"
BACKBONE = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
SMALLEST = 31
"""Pixels on a side from which AlexNet's last layer has any output."""
UNTRAINED = "untrained"
"""In place of a weights file: a random backbone, for tests only."""


def lpips(
    forecast: np.ndarray,
    observed: np.ndarray,
    *,
    limits: tuple[float, float],
    weights: str | Path | None = None,
    device: str = "cpu",
) -> np.ndarray:
    """Compute the perceptual distance of each pair of frames; 0 is equal.

    Args:
        forecast: (frame, y, x) or (frame, channel, y, x), NaN = no data. Pixels where either field is
            missing are made equal in both, so they add no distance.
        observed: The same shape.
        limits: Values that map to black and white. Fields must lie between them: clip or scale first.
        weights: Local file with torchvision's AlexNet; else the environment variable
            NOWCAST_LPIPS_WEIGHTS, else they are downloaded at first use.
        device: Torch device that runs the network.

    Returns:
        float64 (frame,); NaN where a frame has no pixel in common, or fewer than ``SMALLEST`` on a side.

    Raises:
        OptionError: If values lie outside ``limits``.
        ConfigError: If the backbone cannot be downloaded; the message says what to set.
    """
    network = _network(str(weights or os.environ.get(SETTING, "")), device)
    pairs = zip(forecast, observed, strict=True)
    return np.asarray([_distance(network, *pair, limits, device) for pair in pairs], np.float64)


def distance_sums(forecast: np.ndarray, observed: np.ndarray, *, scaling: Scaling) -> dict[str, float]:
    """Compute what a Scores store keeps of two ([channel,] y, x) frames: the distance on [0, 1], and 1 if defined."""
    scaled = (scaling.encode(field)[None] for field in (forecast, observed))
    distance = lpips(*scaled, limits=(0.0, 1.0)).item()
    return {"lpips": 0.0, "lpips_frames": 0} if np.isnan(distance) else {"lpips": distance, "lpips_frames": 1}


def mean_lpips(scores: xr.Dataset, *, over: Sequence[str]) -> xr.DataArray:
    """Perceptual distance (LPIPS): mean over the frames it was computed for; 0 is perfect."""
    pooled = scores[["lpips", "lpips_frames"]].sum(over)
    return pooled["lpips"] / pooled["lpips_frames"].where(pooled["lpips_frames"] > 0)


def _distance(
    network: LPIPS, forecast: np.ndarray, observed: np.ndarray, limits: tuple[float, float], device: str
) -> float:
    missing = np.isnan(forecast) | np.isnan(observed)
    if missing.all() or min(missing.shape[-2:]) < SMALLEST:
        return np.nan
    low, high = limits
    images = np.where(missing, low, np.stack([forecast, observed]))
    scaled = ((images - low) * (2 / (high - low)) - 1).astype(np.float32)
    if np.abs(scaled).max() > 1 + 1e-5:
        raise OptionError(
            f"Values {images.min():g} to {images.max():g} exceed the limits {low:g} to {high:g}; clip them."
        )
    return _between(network, scaled[:, None] if scaled.ndim == 3 else scaled, device)


def distance(forecast: np.ndarray, observed: np.ndarray, *, device: str = "cpu") -> float:
    """Compute the distance of two frames (C, H, W) on whatever scale they are, NaN if they are too small."""
    if min(observed.shape[-2:]) < SMALLEST:
        return np.nan
    network = _network(os.environ.get(SETTING, ""), device)
    return _between(network, np.stack([forecast, observed]).astype(np.float32), device)


def _between(network: LPIPS, frames: np.ndarray, device: str) -> float:
    """Compute the distance of two frames (2, C, H, W), grey or colour."""
    first, second = torch.from_numpy(frames).to(device)[:, None].expand(-1, 1, 3, -1, -1)
    with torch.inference_mode():
        return float(network(first, second).item())


@cache
def _network(weights: str, device: str) -> LPIPS:
    """Build the network once per process."""
    if not weights:
        return _build(untrained=False).to(device)
    # Seeded, so that the untrained network is the same in every process.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _build(untrained=True)
    if weights != UNTRAINED:
        _load_backbone(network, Path(weights))
    return network.to(device)


def _build(*, untrained: bool) -> LPIPS:
    import_torchvision()
    from lpips import LPIPS

    with warnings.catch_warnings():
        # lpips calls torchvision by an old keyword.
        warnings.filterwarnings("ignore", module="torchvision")
        try:
            return LPIPS(pnet_rand=untrained, verbose=False)
        except OSError as error:
            raise ConfigError(
                f"LPIPS needs the AlexNet weights, and they could not be downloaded ({error}); "
                f"fetch {BACKBONE} where you can and set {SETTING} to the file."
            ) from error


def _load_backbone(network: LPIPS, path: Path) -> None:
    """Load torchvision's weights, ``features.3.weight``, into the slices of lpips, ``slice2.3.weight``."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    names = network.net.state_dict()
    network.net.load_state_dict({name: state["features." + name.partition(".")[2]] for name in names})
