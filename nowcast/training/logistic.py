"""Fit of the linear part of a ``lagrangian`` network, before its U-Net is trained.

    python -m nowcast.training.logistic training/lagrangian-radar.yaml linear.safetensors
    nowcast train training/lagrangian-radar.yaml start_from=linear.safetensors

As long as the output of the U-Net is zero, the linear part is a logistic regression at every lead time and level: a
convex problem that Newton's method solves in minutes, while gradient descent only approaches the solution. It is fitted
to pixels drawn from the training spans, half of them with a probability that grows with the rain, which their weights
correct. A level with too few events starts from the weights of the one below.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from nowcast.config import Recipe, load
from nowcast.core.errors import ConfigError
from nowcast.data.loader import Batch, Windows
from nowcast.models.lagrangian import Lagrangian, carry, stronger, trajectories
from nowcast.registry import checkpoint
from nowcast.training.run import untrained

EVERY = 3
"""Stride between the training windows that are used."""
PIXELS = 3000
"""Pixels drawn from each window, at each lead time."""
STRONGER = (0.0, 0.1, 0.2, 0.3)
"""Amounts added to the scaled rain: every window is used as measured and with more rain, as in training."""
EVENTS = 1000
"""Least number of drawn pixels that reach a level, for a fit of it."""
NEWTON, CLOSE = 30, 1e-5
"""Largest number of Newton steps; relative change of the loss, or change of a logit, at which they end."""
RIDGE = 1e-5
"""Regularisation towards the initial weights, per squared change of a logit."""


def fit(recipe: Recipe, out: Path) -> Path:
    """Write a checkpoint of an untrained network with a fitted linear part; its card says so.

    Raises:
        ConfigError: If the recipe is of another network, or its data do not fit.
    """
    network, card = untrained(recipe)
    if not isinstance(network, Lagrangian):
        raise ConfigError(f"{recipe.name} trains {recipe.model}; only lagrangian has a linear part to fit.")
    fitted = 0
    weight_LKF = network.linear.weight.data[..., 0, 0].unflatten(0, (network.out_steps, -1))
    for weight_KF, (seen_PF, truth_P, counts_P) in zip(weight_LKF, _samples(network, recipe), strict=True):
        first_KF = weight_KF.clone()
        for level, limit in enumerate(network.levels.tolist()):
            event_P = (truth_P >= limit).float()
            if event_P.sum() >= EVENTS:
                weight_KF[level] = _regression(seen_PF, event_P, counts_P, first_KF[level])
                fitted += 1
            elif level:
                weight_KF[level] += weight_KF[level - 1] - first_KF[level - 1]
    return checkpoint.save(out, network, card.model_copy(update={"training": {"linear_maps": fitted}}))


def _samples(network: Lagrangian, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield per lead time the linear part's inputs at drawn pixels, their observations, and their weights."""
    kept: list[list[tuple[Tensor, ...]]] = [[] for _ in range(network.out_steps)]
    generator = torch.Generator().manual_seed(0)
    for batch in _windows(recipe):
        for lead, drawn in enumerate(_pixels(network, batch, generator)):
            kept[lead].append(drawn)
    for parts in kept:
        seen, truth, counts = (torch.cat(part) for part in zip(*parts, strict=True))
        yield seen, truth, counts


def _windows(recipe: Recipe) -> Iterator[Batch]:
    """Yield windows of whole frames of the training spans, each with all amounts of ``STRONGER``."""
    settings = recipe.windows.model_copy(update={"crop": None, "crops_per_window": 1, "stride": EVERY})
    for span in recipe.train:
        windows = Windows([span], settings, training=False, missing=True)
        for window in range(len(windows)):
            batch = windows[window, 0]
            for more in STRONGER:
                yield {key: stronger(batch[key], more) for key in ("past", "future")} | {"mask": batch["mask"]}


@torch.inference_mode()
def _pixels(network: Lagrangian, batch: Batch, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
    frames_NTHW = batch["past"][:, :, 0]
    ways_NTHW2 = trajectories(frames_NTHW, max(network.out_steps, network.in_steps - 1))
    known_N1HW = frames_NTHW[:, -1:].isfinite().to(frames_NTHW)
    seen_NFHW, fading = network.seen(network.aligned(frames_NTHW, ways_NTHW2), known_N1HW)
    for lead, left_NKHW in enumerate(fading.after(torch.arange(network.out_steps))):
        way_NHW2 = ways_NTHW2[:, lead]
        inside = carry(known_N1HW, way_NHW2, outside="zeros")[0, 0] > 0.99
        places = (inside & (batch["mask"][0, lead, 0] > 0)).flatten().nonzero()[:, 0]
        truth_P = batch["future"][0, lead, 0].flatten()[places]
        rain_P = network.rate(truth_P)
        often_P = (1 + rain_P / rain_P.mean()) / 2
        drawn = torch.multinomial(often_P, PIXELS, replacement=True, generator=generator)
        places, counts = places[drawn], 1 / often_P[drawn]
        at_N1P2 = way_NHW2.flatten(1, 2)[:, places][:, None]
        seen = [carry(part_NFHW, at_N1P2)[0, :, 0].T for part_NFHW in (seen_NFHW, network.normed(left_NKHW))]
        yield torch.cat(seen, dim=1), truth_P[drawn], counts


def _regression(seen_PF: Tensor, event_P: Tensor, counts_P: Tensor, begin_F: Tensor) -> Tensor:
    """Fit a regularised logistic regression by Newton's method; steps are halved where the loss would rise.

    Args:
        seen_PF: Inputs (pixel, feature).
        event_P: 1 where the level was reached.
        counts_P: Weight of each pixel.
        begin_F: Initial weights, towards which the fit is regularised.

    Returns:
        Weights (feature).
    """
    size_F = torch.where(seen_PF.amax(0) > seen_PF.amin(0), seen_PF.std(0).clamp(min=0.005), seen_PF[0])
    size_F = torch.where(size_F == 0, 1.0, size_F)  # features that are always 0
    scaled_PF, begin_F = seen_PF / size_F, begin_F * size_F

    def cost(weight_F: Tensor) -> float:
        loss = functional.binary_cross_entropy_with_logits(scaled_PF @ weight_F, event_P, counts_P)
        return (loss + RIDGE * (weight_F - begin_F).square().sum()).item()

    weight_F, loss = begin_F, cost(begin_F)
    for _ in range(NEWTON):
        chance_P = (scaled_PF @ weight_F).sigmoid()
        slope_F = scaled_PF.T @ (counts_P * (chance_P - event_P)) / len(event_P) + 2 * RIDGE * (weight_F - begin_F)
        doubt_P = counts_P * chance_P * (1 - chance_P) / len(event_P)
        bend_FF = (scaled_PF.T * doubt_P) @ scaled_PF + 2 * RIDGE * torch.eye(len(weight_F))
        step_F = torch.linalg.solve(bend_FF.cpu().double(), slope_F.cpu().double()).to(slope_F)
        while (new := cost(weight_F - step_F)) > loss and step_F.abs().max() > CLOSE:
            step_F = step_F / 2
        if new > loss - CLOSE * loss:
            break
        weight_F, loss = weight_F - step_F, new
    return weight_F / size_F


if __name__ == "__main__":
    fit(load(Recipe, sys.argv[1]), Path(sys.argv[2]))
