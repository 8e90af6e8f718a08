"""STEPS: many possible futures, in which noise as structured as the rain replaces the scales that fade.

Bowler et al. (2006), "STEPS: A probabilistic precipitation forecasting scheme", doi:10.1256/qj.04.100; Seed et al.
(2013), doi:10.1002/wrcr.20536; as in pysteps: Pulkkinen et al. (2019), doi:10.5194/gmd-12-4185-2019.

A forecast of ours is one future, so what comes out is the mean of the ensemble, or one of its members. Where the
cascade cannot work it is plain extrapolation, as in ``sprog``.
"""

from __future__ import annotations

import numpy as np

from nowcast.core.errors import OptionError
from nowcast.models.sprog import SPROG


class STEPS(SPROG):
    """Mean, or one member, of an ensemble of stochastic cascades; nothing to learn.

    The same frames give the same forecast. The mean is taken in the scale of the input. Missing pixels are treated
    as in ``Extrapolation``. Runs on the CPU.

    Args:
        wet: Scaled value from which it rains; the default is 0.12 mm/h on the usual scale of rain rate.
        levels: Scales, at least 3.
        members: Of the ensemble, at least 2.
        member: Which of them comes out, from 0; None: the mean of all.
        pixel_km: Side of a pixel, km: it scales the errors of motion and how fast dry pixels may become wet.
        step_minutes: Minutes between frames, likewise.
        seed: Of the noise.

    Raises:
        ValueError: If the options do not fit.
    """

    PAPER = "Bowler et al. (2006), doi:10.1256/qj.04.100; Seed et al. (2013), doi:10.1002/wrcr.20536"

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        wet: float = 0.02,
        levels: int = 6,
        members: int = 20,
        member: int | None = None,
        pixel_km: float = 1.0,
        step_minutes: float = 5.0,
        seed: int = 0,
    ) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels, wet=wet, levels=levels)
        if members < 2 or not 0 <= (member or 0) < members:
            raise OptionError(f"members must be >= 2 and member lie below it, got {members} and {member}.")
        if pixel_km <= 0 or step_minutes <= 0:
            raise OptionError(f"pixel_km and step_minutes must be > 0, got {pixel_km} and {step_minutes}.")
        self.members, self.member, self.seed = members, member, seed
        self.pixel_km, self.step_minutes = pixel_km, step_minutes

    def evolved(self, frames_THW: np.ndarray, motion_2HW: np.ndarray) -> np.ndarray:
        """Return the mean or one member of the ensemble at each lead time, (out_steps, H, W)."""
        from pysteps.nowcasts import steps

        made: list[np.ndarray] = []

        def keep(fields_MHW: np.ndarray) -> None:
            """Take the members of one lead time, so that all of them are never in memory at once."""
            made.append(np.nanmean(fields_MHW, axis=0) if self.member is None else fields_MHW[self.member].copy())

        steps.forecast(
            frames_THW,
            motion_2HW,
            self.out_steps,
            n_ens_members=self.members,
            n_cascade_levels=self.cascade,
            precip_thr=self.wet,
            kmperpixel=self.pixel_km,
            timestep=self.step_minutes,
            seed=self.seed,
            fft_method="scipy",
            callback=keep,
            return_output=False,
        )
        future = np.stack(made)
        # Rain at the rim alone is none to pysteps, which fades the field out there before it looks.
        return future if (future >= self.wet).any() else np.full_like(future, np.nan)
