"""What training makes small: distances between frames that were made and true ones.

Each is ``name(made_BTCHW, truth_BTCHW, weight_BTCHW, *, options)``, a number. ``weight`` is 0 where nothing was
measured, and larger than 1 where a recipe says that an error counts more; None: every pixel counts alike. Frames lie
in [0, 1], and so do limits here.

Shape letters: M members, B batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, distributed
from torch.nn import functional

from nowcast.core.errors import OptionError

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
HKO7_WEIGHTS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""How much a pixel counts in the HKO-7 benchmark below 2 mm/h, from 2, 5, 10 and 30 mm/h on."""
EDGE = 1e-6
"""Probabilities nearer to 0 or 1 count as this, so that their logarithm is finite."""


def weighted_mean(error: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over all pixels, or over those that count.

    Where several processes train together, weights are divided by the mean of their sums: the mean of the losses of
    the processes, which their gradients are averaged to, is then that of one batch that holds all their samples.
    """
    if weight is None:
        return error.mean()
    total = weight.sum()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
        total = total / distributed.get_world_size()
    return (error * weight).sum() / total.clamp(min=1)


def weighted_sum(error: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sum over all pixels of the batch, of all processes that train together.

    Their gradients are averaged, so each process multiplies its own sum by their number.
    """
    total = error.sum() if weight is None else (error * weight).sum()
    several = distributed.is_available() and distributed.is_initialized()
    return total * distributed.get_world_size() if several else total


REDUCTIONS = {"mean": weighted_mean, "sum": weighted_sum}
"""How the errors of pixels become one number. Many official codes sum: Adam's eps feels the difference."""


def mse(made: Tensor, truth: Tensor, weight: Tensor | None = None, *, reduction: str = "mean") -> Tensor:
    """Squared error of a pixel, by ``reduction`` the ``mean`` or the ``sum`` over all of the batch."""
    return _reduced((made - truth).square(), weight, reduction)


def mae(made: Tensor, truth: Tensor, weight: Tensor | None = None, *, reduction: str = "mean") -> Tensor:
    """Absolute error of a pixel, by ``reduction`` the ``mean`` or the ``sum`` over all of the batch."""
    return _reduced((made - truth).abs(), weight, reduction)


def bce(made: Tensor, truth: Tensor, weight: Tensor | None = None, *, reduction: str = "mean") -> Tensor:
    """Binary cross-entropy: frames are taken as probabilities; ``reduction`` as for ``mse``.

    Beyond [0, 1], where networks without a final sigmoid get to, it is the value at the edge and the distance to it.
    """
    made = made.to(torch.promote_types(made.dtype, torch.float32))  # half precision knows no number next to 1
    inside = made.clamp(EDGE, 1 - EDGE)
    entropy = -(truth * inside.log() + (1 - truth) * (1 - inside).log())
    return _reduced(entropy + (made - inside).abs(), weight, reduction)


def _reduced(error: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    if reduction not in REDUCTIONS:
        raise OptionError(f"Unknown reduction {reduction!r}; known: {', '.join(REDUCTIONS)}.")
    return REDUCTIONS[reduction](error, weight)


def balanced(
    made: Tensor,
    truth: Tensor,
    weight: Tensor | None = None,
    *,
    limits: Sequence[float],
    weights: Sequence[float] = HKO7_WEIGHTS,
    squared: float = 1,
    absolute: float = 1,
) -> Tensor:
    """B-MSE + B-MAE: squared and absolute error, which count more the more it rains. A mean over pixels.

    Args:
        made: Forecast.
        truth: What happened; its rain sets the weight of a pixel.
        weight: See the top of this file.
        limits: Rising; from each one on a pixel counts more.
        weights: Below the first limit, from the first on, from the second on, ...
        squared: Share of the squared error.
        absolute: Share of the absolute error.

    Raises:
        ValueError: If limits do not rise, or weights do not fit them.

    Reference: Shi et al. (2017), arXiv:1706.03458, section 3.4. They sum over a frame of 480 x 480 and multiply by
    1e-5, which is 2.3 times the mean.
    """
    if len(weights) != len(limits) + 1 or list(limits) != sorted(limits):
        raise OptionError(f"limits must rise, with one weight more than limits, got {limits}, {weights}.")
    error, counts = made - truth, torch.full_like(truth, weights[0])
    for limit, (below, above) in zip(limits, pairwise(weights), strict=True):
        counts = counts + (above - below) * (truth >= limit)
    return weighted_mean(counts * (squared * error.square() + absolute * error.abs()), weight)


def multiscale(
    made: Tensor, truth: Tensor, weight: Tensor | None = None, *, scales: Sequence[int] = (1, 2, 4, 8)
) -> Tensor:
    """Squared error of means over squares of pixels of several sizes: what is a little out of place costs less.

    Args:
        made: Forecast.
        truth: What happened.
        weight: Means are over what was measured, and count by how much was.
        scales: Sides of the squares, pixels.
    """
    counts = torch.ones_like(truth) if weight is None else weight.expand_as(truth)
    errors = []
    for side in scales:
        total = _summed(counts, side)
        means = [_summed(frames * counts, side) / total.clamp(min=1e-6) for frames in (made, truth)]
        errors.append(mse(means[0], means[1], total))
    return torch.stack(errors).mean()


def spectral(made: Tensor, truth: Tensor, weight: Tensor | None = None, *, floor: float = 1e-4) -> Tensor:
    """Squared difference of the logarithms of the power at every wave number: what is blurred costs, where it is not.

    It does not see where rain is: add it to a loss that does.

    Args:
        made: Forecast.
        truth: What happened.
        weight: Where it is 0, both are taken to be dry.
        floor: Power below which differences fade.
    """
    logarithms = []
    for frames in (made, truth):
        seen = frames if weight is None else frames * (weight > 0)
        waves = torch.fft.rfft2(seen.float(), norm="ortho")  # half precision knows no such transform
        logarithms.append((waves.real.square() + waves.imag.square() + floor).log())
    output: Tensor = (logarithms[0] - logarithms[1]).square().mean()
    return output


def fss(
    made: Tensor,
    truth: Tensor,
    weight: Tensor | None = None,
    *,
    limits: Sequence[float],
    sides: Sequence[int] = (9,),
    softness: float = 0.02,
) -> Tensor:
    """One minus the fractions skill score, mean over limits and neighbourhoods; sums over the batch, then ratios.

    Args:
        made: Forecast; it is an event by the sigmoid of (value - limit) / softness, so that there is a gradient.
        truth: What happened; at or above a limit it is an event.
        weight: Where it is 0 there is no event.
        limits: From which on rain is an event.
        sides: Of square neighbourhoods, pixels, odd.
        softness: In [0, 1] as frames are.

    Raises:
        ValueError: If a side is even, which has no middle.

    Reference: Roberts and Lean (2008), doi:10.1175/2007MWR2123.1; as a loss: Ebert-Uphoff et al. (2021),
    arXiv:2106.09757.
    """
    if any(side % 2 == 0 for side in sides):
        raise OptionError(f"sides must be odd, got {tuple(sides)}.")
    known = torch.ones_like(truth) if weight is None else (weight > 0).to(truth.dtype)
    ratios = []
    for limit in limits:
        events = ((made - limit) / softness).sigmoid() * known, (truth >= limit) * known
        for side in sides:
            forecast, observed = (_neighbours(part, side) for part in events)
            reference = (forecast.square() + observed.square()).sum().clamp(min=1)  # a dry batch costs next to nothing
            ratios.append((forecast - observed).square().sum() / reference)
    return torch.stack(ratios).mean()


def crps(made: Tensor, truth: Tensor, weight: Tensor | None = None, *, members: int) -> Tensor:
    """Fair continuous ranked probability score of an ensemble, the absolute error less the spread.

    Args:
        made: (M B, T, C, H, W): the first forecast of all samples, the second of all samples, ...
        truth: The same shape: what happened, repeated.
        weight: The same shape.
        members: M; of one member it is the absolute error.

    Reference: Ferro (2014), doi:10.1002/qj.2270.
    """
    made_MBTCHW = made.unflatten(0, (members, -1))
    error = (made_MBTCHW - truth[: made_MBTCHW.shape[1]]).abs().mean(0)
    if members > 1:
        # In order, value k of M is the larger one in k - 1 pairs and the smaller one in M - k.
        larger = torch.arange(1 - members, members, 2, device=made.device, dtype=made.dtype).view(-1, 1, 1, 1, 1, 1)
        error = error - (larger * made_MBTCHW.sort(0).values).sum(0) / (members * (members - 1))
    return weighted_mean(error, None if weight is None else weight[: len(error)])


def _summed(frames: Tensor, side: int) -> Tensor:
    """Sum over squares; what sticks out at the border is a smaller one."""
    sums = functional.avg_pool2d(frames.flatten(0, 1), side, ceil_mode=True, divisor_override=1)
    output: Tensor = sums.unflatten(0, frames.shape[:2])
    return output


def _neighbours(events: Tensor, side: int) -> Tensor:
    """Share of events around every pixel; none beyond the border."""
    output: Tensor = functional.avg_pool2d(events.flatten(0, 1), side, 1, side // 2).unflatten(0, events.shape[:2])
    return output
