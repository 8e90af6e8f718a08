"""S-PROG: extrapolation in which small scales fade, because they live no longer than they can be foreseen.

Seed (2003), "A Dynamic and Spatial Scaling Approach to Advection Forecasting", doi:10.1175/1520-0450(2003)042
<0381:ADASSA>2.0.CO;2, as in pysteps: Pulkkinen et al. (2019), doi:10.5194/gmd-12-4185-2019.

The field is split into scales by a Fourier filter; an autoregressive model of each, in coordinates that move with
the rain, decides how fast it fades. Unlike pysteps' own example motion is that of ``extrapolation``, and where the
cascade cannot work, nothing fades: fewer than three frames, too little rain, too small a grid.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Literal

import numpy as np

from nowcast.core.errors import MissingExtra, OptionError
from nowcast.models.extrapolation import Extrapolation, advect, motion

FRAMES = 3
"""Past frames of an autoregressive model of second order."""

SMALLEST = 32
"""Pixels per side that can be split into scales."""

LEAST_RAIN = 0.005
"""Share of wet pixels in every one of the frames, below which their correlation says nothing."""

NO_PYSTEPS = (
    "{} needs pysteps, which is compiled when it is installed and wants a C compiler: "
    "pip install 'nowcast-radar[pysteps]'."
)
log = logging.getLogger(__name__)


class SPROG(Extrapolation):
    """Extrapolation of a cascade of scales; nothing to learn.

    Works in the scale of its input, which for rain rate should be that of decibels: rain multiplies, it does not
    add. Missing pixels are treated as in ``Extrapolation``. Runs on the CPU.

    Args:
        wet: Scaled value from which it rains; the default is 0.12 mm/h on the usual scale of rain rate.
        levels: Scales, at least 3.
        matching: ``cdf`` gives every forecast the intensities of the newest frame, ``mean`` only their mean,
            ``none`` leaves it as smooth as it gets.

    Raises:
        ValueError: If the options do not fit.
    """

    PAPER = "Seed (2003), doi:10.1175/1520-0450(2003)042<0381:ADASSA>2.0.CO;2"
    history = (FRAMES, 4)
    extra = "pysteps"

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        wet: float = 0.02,
        levels: int = 6,
        matching: Literal["cdf", "mean", "none"] = "cdf",
    ) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels)
        if wet <= 0 or levels < 3:
            raise OptionError(f"wet must be > 0 and levels >= 3, got {wet} and {levels}.")
        if matching not in ("cdf", "mean", "none"):
            raise OptionError(f"Unknown matching {matching!r}; known: cdf, mean, none.")
        self.wet, self.cascade, self.matching = wet, levels, None if matching == "none" else matching

    def forecast(self, frames_THW: np.ndarray) -> np.ndarray:
        """Forecast from frames_THW: (out_steps, H, W)."""
        flow = motion(frames_THW)
        carried = advect(frames_THW[-1], flow, steps=self.out_steps)
        newest = frames_THW[-FRAMES:]
        if len(newest) < FRAMES or min(newest.shape[1:]) < SMALLEST or not self.rains(newest):
            return carried
        try:
            with _quiet(type(self).__name__):
                made = self.evolved(newest.astype(np.float64), flow.astype(np.float64))
        except (ValueError, np.linalg.LinAlgError):  # frames without any change, or of one value, have no cascade
            log.warning("%s moves the newest frame alone", type(self).__name__, exc_info=True)
            return carried
        # pysteps gives up every pixel that misses in one of the frames.
        return np.where(np.isfinite(carried) & np.isfinite(made), made, carried)

    def rains(self, frames_THW: np.ndarray) -> bool:
        """Whether there is enough rain in every frame to correlate one with another."""
        return bool((np.mean(frames_THW >= self.wet, axis=(1, 2)) >= LEAST_RAIN).all())

    def evolved(self, frames_THW: np.ndarray, motion_2HW: np.ndarray) -> np.ndarray:
        """Run pysteps: (out_steps, H, W), NaN where it knows nothing."""
        from pysteps.nowcasts import sprog

        made: np.ndarray = sprog.forecast(
            frames_THW,
            motion_2HW,
            self.out_steps,
            precip_thr=self.wet,
            n_cascade_levels=self.cascade,
            probmatching_method=self.matching,
            fft_method="scipy",
        )
        return made


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep inside what pysteps does beside its work: it prints, warns and seeds numpy's global generator.

    Raises:
        MissingExtra: If it is not installed.
    """
    state = np.random.get_state()
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                import pysteps  # noqa: F401
            except ModuleNotFoundError as error:
                if error.name != "pysteps":
                    raise
                raise MissingExtra(NO_PYSTEPS.format(name)) from None
            yield
    finally:
        np.random.set_state(state)
