"""The linear part of a ``lagrangian`` network, fitted exactly before its U-Net learns the rest.

    python -m nowcast.training.logistic training/lagrangian-radar.yaml linear.safetensors
    nowcast train training/lagrangian-radar.yaml start_from=linear.safetensors

While the U-Net is silent the linear part is a logistic regression at every lead time and level: a convex problem that
Newton's method solves in minutes, where steps along gradients only come near. It is fitted to pixels drawn from the
training spans, half of them the more often the more it rained there, and weighted for that. A level that is reached too
rarely begins with the weights of the one below.
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
"""Of the training windows one in so many is looked at."""
PIXELS = 3000
"""Drawn from each of them, at each lead time."""
STRONGER = (0.0, 0.1, 0.2, 0.3)
"""Added to the scaled rain: every window as it was measured, and with more of it, as in training."""
EVENTS = 1000
"""Drawn pixels that reach a level, fewer of which say too little about it."""
NEWTON, CLOSE = 30, 1e-5
"""Steps at most, and the share of the loss, or the change of a logit, that is not worth another one."""
RIDGE = 1e-5
"""Holds weights near those they begin with, per squared change of a logit."""


def fit(recipe: Recipe, out: Path) -> Path:
    """Writes a checkpoint of an untrained network with a fitted linear part; its card says so.

    Raises:
        ConfigError: If the training data do not fit.
        ConfigError: If the recipe is of another network.
    """
    network, card = untrained(recipe)
    if not isinstance(network, Lagrangian):
        raise ConfigError(f"{recipe.name} trains {recipe.model}; only lagrangian has a linear part to fit.")
    fitted = 0
    weight_LKF = network.linear.weight.data[..., 0, 0].unflatten(0, (network.out_steps, -1))
    for weight_KF, (seen_PF, truth_P, counts_P) in zip(weight_LKF, _drawn(network, recipe), strict=True):
        first_KF = weight_KF.clone()
        for level, limit in enumerate(network.levels.tolist()):
            event_P = (truth_P >= limit).float()
            if event_P.sum() >= EVENTS:
                weight_KF[level] = _regression(seen_PF, event_P, counts_P, first_KF[level])
                fitted += 1
            elif level:
                weight_KF[level] += weight_KF[level - 1] - first_KF[level - 1]
    return checkpoint.save(out, network, card.model_copy(update={"training": {"linear_maps": fitted}}))


def _drawn(network: Lagrangian, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Per lead time: what the linear part sees at drawn pixels, what happened, and how much each pixel counts."""
    kept: list[list[tuple[Tensor, ...]]] = [[] for _ in range(network.out_steps)]
    generator = torch.Generator().manual_seed(0)
    for batch in _windows(recipe):
        for lead, drawn in enumerate(_pixels(network, batch, generator)):
            kept[lead].append(drawn)
    for parts in kept:
        seen, truth, counts = (torch.cat(part) for part in zip(*parts, strict=True))
        yield seen, truth, counts


def _windows(recipe: Recipe) -> Iterator[Batch]:
    """Whole frames of the training spans, each window with all its strengths."""
    settings = recipe.windows.model_copy(update={"crop": None, "crops_per_window": 1, "stride": EVERY})
    for span in recipe.train:
        windows = Windows([span], settings, augment=False, missing=True)
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
    """Weights of the logistic regression nearest to those it begins with, by Newton's method with shorter steps where
    the loss would rise."""
    size_F = torch.where(seen_PF.amax(0) > seen_PF.amin(0), seen_PF.std(0).clamp(min=0.005), seen_PF[0])
    size_F = torch.where(size_F == 0, 1.0, size_F)  # what is always 0, beside the constant
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
        step_F = torch.linalg.solve(bend_FF.double(), slope_F.double()).float()
        while (new := cost(weight_F - step_F)) > loss and step_F.abs().max() > CLOSE:
            step_F = step_F / 2
        if new > loss - CLOSE * loss:
            break
        weight_F, loss = weight_F - step_F, new
    return weight_F / size_F


if __name__ == "__main__":
    fit(load(Recipe, sys.argv[1]), Path(sys.argv[2]))
