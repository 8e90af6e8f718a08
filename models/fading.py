"""How fast rain fades at each of its scales and in each region, as the last frames show it.

In coordinates that move with the rain every scale follows an autoregressive model of second order (Seed, 2003, see
``sprog``). Its coefficients come from the correlations of the last three frames around a place, since showers fade
beside rain that lasts (Pulkkinen et al., 2020, doi:10.1109/TGRS.2020.3000188).

Shape letters: N images, T time, K scales, L lead times, H height, W width, h and w of the regions.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from nowcast.models.blocks import to_multiple

REGION = 32
"""Pixels per side of a region; its neighbours on every side, and theirs, count too."""

EVERYWHERE = 0.02
"""Weight of the whole field in each of them, which decides where it does not rain."""

LASTING = 0.9995
"""Largest correlation that is believed."""

MARGIN = 1e-3
"""Of the second correlation from where the model would not be stationary."""


def scales(x_NCHW: Tensor, count: int) -> Tensor:
    """Differences of means over squares of 1, 2, 4, ... pixels, and the last of these means: (N, count, C, H, W)."""
    height, width = x_NCHW.shape[-2:]
    small, fine, parts = to_multiple(x_NCHW, 2 ** (count - 1)), x_NCHW, []
    for halvings in range(1, count):
        small = functional.avg_pool2d(small, 2)
        rough = functional.interpolate(small, scale_factor=2.0**halvings, mode="bilinear")[..., :height, :width]
        parts.append(fine - rough)
        fine = rough
    return torch.stack([*parts, fine], dim=1)


class Fading:
    """What is left of the newest frame after each lead time.

    Args:
        parts_NKTHW: Scales of one frame or more where their rain is now, newest first; three count.
        known_N1HW: 1 where there are data.
        steps: Lead times.
    """

    def __init__(self, parts_NKTHW: Tensor, known_N1HW: Tensor, steps: int) -> None:
        known_N11HW = known_N1HW[:, None]
        total = known_N11HW.sum((-2, -1), keepdim=True).clamp(min=1)
        mean_NKT11 = (parts_NKTHW[:, :, :3] * known_N11HW).sum((-2, -1), keepdim=True) / total
        parts_NKTHW = parts_NKTHW[:, :, :3] - mean_NKT11
        self.mean_NK11, self.newest_NKHW = mean_NKT11[:, :, 0], parts_NKTHW[:, :, 0]
        self.before_NKHW = parts_NKTHW[:, :, 1] if parts_NKTHW.shape[2] > 1 else self.newest_NKHW
        self.weights_2NLKhw = torch.stack(list(_weights(*_correlations(parts_NKTHW, known_N11HW), steps)), dim=2)
        """Of the newest frame and of the one before."""

    def after(self, leads_L: Tensor) -> Iterator[Tensor]:
        """Return the scales NKHW at some lead times, counted from 0."""
        height, width = self.newest_NKHW.shape[-2:]
        for weights_2NKhw in self.weights_2NLKhw.index_select(2, leads_L).unbind(2):
            newest, before = (
                functional.interpolate(weight, scale_factor=float(REGION), mode="bilinear")[..., :height, :width]
                for weight in weights_2NKhw
            )
            yield self.mean_NK11 + newest * self.newest_NKHW + before * self.before_NKHW


def _correlations(parts_NKTHW: Tensor, known_N11HW: Tensor) -> tuple[Tensor, Tensor]:
    """Of every scale with itself one and two steps before, NKhw; what cannot be seen is as in a first-order model."""
    frames = [part_NKHW * known_N11HW[:, 0] for part_NKHW in parts_NKTHW.unbind(2)]
    power = [_around(frame.square()) for frame in frames]
    if len(frames) == 1:
        lasting = torch.full_like(power[0], LASTING)
        return lasting, lasting.square()
    shared = torch.stack([_around(newer * older) for newer, older in pairwise(frames)]).sum(0)
    size = torch.stack([(newer * older).sqrt() for newer, older in pairwise(power)]).sum(0)
    first_NKhw = (shared / size.clamp(min=1e-12)).clamp(0, LASTING)
    if len(frames) == 2:
        return first_NKhw, first_NKhw.square()
    second_NKhw = _around(frames[0] * frames[2]) / (power[0] * power[2]).sqrt().clamp(min=1e-12)
    return first_NKhw, second_NKhw.maximum(2 * first_NKhw.square() - 1 + MARGIN).minimum(first_NKhw)


def _around(x_NKHW: Tensor) -> Tensor:
    """Mean over each region and what lies around it, NKhw, and a little of the mean over all."""
    regions_NKhw = functional.avg_pool2d(to_multiple(x_NKHW, REGION), REGION)
    for _ in range(2):
        regions_NKhw = functional.avg_pool2d(functional.pad(regions_NKhw, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return regions_NKhw + EVERYWHERE * x_NKHW.mean((-2, -1), keepdim=True)


def _weights(first_NKhw: Tensor, second_NKhw: Tensor, steps: int) -> Iterator[Tensor]:
    """After each step, of the newest frame and of the one before (Yule-Walker), 2NKhw."""
    rest = 1 - first_NKhw.square()
    by_newest = first_NKhw * (1 - second_NKhw) / rest
    by_before = (second_NKhw - first_NKhw.square()) / rest
    now = torch.stack([torch.ones_like(rest), torch.zeros_like(rest)])
    before = now.flip(0)
    for _ in range(steps):
        now, before = by_newest * now + by_before * before, now
        yield now
