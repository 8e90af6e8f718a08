"""What was not measured, or cannot be known, is neither learnt nor let grow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nowcast.models import build
from nowcast.models.fading import Fading


@pytest.mark.parametrize("loss", [None, "mse"])
def test_where_a_forecast_is_not_known_the_truth_does_not_count(loss: str | None) -> None:
    """Rain that stands still beside a hole: what comes up in the hole is nothing to learn from."""
    torch.manual_seed(0)
    network = build("lagrangian:debug", in_steps=3, out_steps=4).train()
    if loss:
        from nowcast.models.losses import mse

        network.loss = mse
    rng = np.random.default_rng(1)
    field = torch.from_numpy(np.kron(rng.random((8, 8)), np.ones((8, 8))).astype(np.float32))
    past = field.expand(1, 3, 1, 64, 64).clone()
    past[..., :24, :24] = torch.nan
    found = []
    for inside in (0.0, 1.0):
        future = field.expand(1, 4, 1, 64, 64).clone()
        future[..., :20, :20] = inside
        torch.manual_seed(1)
        found.append(network.training_loss(past, future, 0.0, torch.ones_like(future)).item())
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def patterns(*weights: tuple[float, float]) -> torch.Tensor:
    """Frames, newest first, that are sums of two patterns which have nothing in common in any region."""
    columns = torch.arange(256) * (2 * torch.pi / 32)
    one, other = columns.sin().expand(64, -1), columns.cos().expand(64, -1)
    return torch.stack([a * one + b * other for a, b in weights])[None, None]


def test_a_scale_whose_oldest_frame_contradicts_the_others_does_not_grow() -> None:
    """The two newest frames are all but alike, and the oldest is weak and all but their opposite.

    Without a bound the second correlation is -0.98 beside a first one of 0.98: no such process is stationary, and
    every step would be a hundred times as large as the one before.
    """
    parts = patterns((1, 0), (1, 0.02), (-0.02, 0.002))
    fading = Fading(parts, torch.ones(1, 1, 64, 256), 12)
    left = torch.cat([part.abs().amax((-2, -1)) for part in fading.after(torch.arange(12))])
    assert left.max() < 1.6


def test_a_scale_that_swings_dies_away() -> None:
    """Frames that turn by 30 degrees a step: correlations 0.87 and 0.5, at the very border of what is stationary."""
    turns = [(float(np.cos(step * np.pi / 6)), float(np.sin(step * np.pi / 6))) for step in range(3)]
    fading = Fading(patterns(*turns), torch.ones(1, 1, 64, 256), 1200)
    (late,) = fading.after(torch.tensor([1199]))
    assert late.abs().max() < 0.5
