"""The linear part of a trained ``lagrangian`` network, fitted exactly where there is enough to fit it to.

    python -m nowcast.refit runs/lagrangian-radar/last.safetensors lagrangian-radar.safetensors

Its weights are those of a logistic regression with the U-Net's logits as offset, a convex problem that L-BFGS solves
in minutes while steps along gradients only come near. It is fitted to pixels drawn from the training spans of the
checkpoint's recipe; levels that are reached too rarely in them keep their weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from models.lagrangian import Lagrangian, carry, stronger, trajectories
from nowcast import checkpoint
from nowcast.config import Recipe
from nowcast.windows import Batch, Windows

EVERY = 3
"""Of the training windows one in so many is looked at."""
PIXELS = 3000
"""Drawn from each of them, at each lead time."""
STRONGER = (0.0, 0.15)
"""Added to the scaled rain: every window as it was measured, and with more of it, as in training."""
EVENTS = 5000
"""Pixels that reach a level, fewer of which say too little about it."""
RIDGE = 1e-5
"""Holds weights near where training left them, per squared change of a logit."""


def refit(source: Path, out: Path) -> Path:
    """Writes a checkpoint with the fitted weights; its card says so.

    Raises:
        BadInput: If ``source`` is no checkpoint.
        ValueError: If it is of another network.
    """
    model, card = checkpoint.load(source), checkpoint.read_card(source)
    network = model.network
    if not isinstance(network, Lagrangian):
        raise ValueError(f"{source} is a {model.name}; only lagrangian has a linear part to fit.")
    fitted = 0
    for lead, (seen_PF, offset_PK, truth_P) in enumerate(_drawn(network, Recipe.model_validate(card.recipe))):
        for level, limit in enumerate(network.levels.tolist()):
            event_P = (truth_P >= limit).float()
            if event_P.sum() >= EVENTS:
                row = network.linear.weight.data[lead * len(network.levels) + level, :, 0, 0]
                row.copy_(_regression(seen_PF, offset_PK[:, level], event_P, row))
                fitted += 1
    facts = card.training | {"refit_of": checkpoint.file_digest(source), "refit_maps": fitted}
    return checkpoint.save(out, network, card.model_copy(update={"training": facts}))


def _drawn(network: Lagrangian, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Per lead time: what the linear part sees at drawn pixels, the U-Net's logits there, and what happened."""
    kept: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in range(network.out_steps)]
    generator = torch.Generator().manual_seed(0)
    for batch in _windows(recipe):
        for lead, drawn in enumerate(_pixels(network, batch, generator)):
            kept[lead].append(drawn)
    for parts in kept:
        seen, offset, truth = (torch.cat(part) for part in zip(*parts, strict=True))
        yield seen, offset, truth


def _windows(recipe: Recipe) -> Iterator[Batch]:
    """Whole frames of the training spans, each window with all its strengths."""
    settings = recipe.windows.model_copy(update={"crop": None, "crops_per_window": 1, "stride": EVERY})
    for span in recipe.train:
        windows = Windows([span], settings, augment=False)
        for window in range(len(windows)):
            batch = windows[window, 0]
            for more in STRONGER:
                yield {key: stronger(batch[key], more) for key in ("past", "future")} | {"mask": batch["mask"]}


@torch.inference_mode()
def _pixels(network: Lagrangian, batch: Batch, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    frames_NTHW = batch["past"][:, :, 0]
    ways_NTHW2 = trajectories(frames_NTHW, network.out_steps)
    aligned_NTHW = network.aligned(frames_NTHW, ways_NTHW2)
    known_N1HW = torch.ones_like(aligned_NTHW[:, :1])
    seen_NFHW, levels = network.seen(aligned_NTHW), len(network.levels)
    rows = torch.arange(network.out_steps * levels)
    logits_NMHW = network.unet(torch.cat([aligned_NTHW, known_N1HW], dim=1), rows, network.segment)
    for lead in range(network.out_steps):
        way_NHW2 = ways_NTHW2[:, lead]
        inside = carry(known_N1HW, way_NHW2, outside="zeros")[0, 0] > 0.99
        places = (inside & (batch["mask"][0, lead, 0] > 0)).flatten().nonzero()[:, 0]
        places = places[torch.randperm(len(places), generator=generator)[:PIXELS]]
        at_N1P2 = way_NHW2.flatten(1, 2)[:, places][:, None]
        offset = carry(logits_NMHW[:, lead * levels : (lead + 1) * levels], at_N1P2)
        yield (carry(seen_NFHW, at_N1P2)[0, :, 0].T.clone(), offset[0, :, 0].T.clone(),
               batch["future"][0, lead, 0].flatten()[places])  # fmt: skip


def _regression(seen_PF: Tensor, offset_P: Tensor, event_P: Tensor, begin_F: Tensor) -> Tensor:
    """Weights of the logistic regression nearest to those it begins with."""
    size_F = seen_PF.std(0).clamp(min=0.05)
    size_F[-1] = seen_PF[0, -1]  # the constant
    scaled_PF, begin = seen_PF / size_F, begin_F * size_F
    weight = begin.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([weight], max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(scaled_PF @ weight + offset_P, event_P)
        loss = loss + RIDGE * (weight - begin).square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach() / size_F


if __name__ == "__main__":
    refit(Path(sys.argv[1]), Path(sys.argv[2]))
