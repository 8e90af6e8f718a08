"""Pixels without data are nothing to learn from: neither dry, nor an error."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from nowcast import store
from nowcast.config import Recipe
from nowcast.core.units import get_quantity
from nowcast.models import MODELS, Nowcaster
from nowcast.registry import checkpoint
from nowcast.training import run as training
from tests import synthetic
from tests.training.test_run import losses, recipe

RAIN = 6.0


class Level(Nowcaster):
    """A network that forecasts one number everywhere, the one it has learnt."""

    def __init__(self, *, in_steps: int, out_steps: int, channels: int = 1) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels)
        self.level = torch.nn.Parameter(torch.tensor([0.2]))

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        return (self.level + 0 * past_BTCHW[:, -1:]).expand(-1, self.out_steps, -1, -1, -1)


@pytest.fixture
def half_covered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Of the network above, on frames of which one half has even rain and the other has no data."""
    module = ModuleType("nowcast.models.level")
    module.Level = Level  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(MODELS, "level", "level:Level")
    frames = synthetic.cube(range(24))
    frames["rainfall_rate"][:] = RAIN
    frames["rainfall_rate"][:, :, 32:] = np.nan
    store.FrameStore(tmp_path / "frames").append(frames, message="m")
    settings = recipe(tmp_path, epochs=3, batches_per_epoch=20, learning_rate=0.05)
    windows = {"crop": None, "crops_per_window": 1}
    return Recipe.model_validate(
        settings.model_dump() | {"model": "level", "windows": settings.windows.model_dump() | windows}
    )


def test_no_data_is_not_learnt_as_dry(half_covered: Recipe, tmp_path: Path) -> None:
    """The level is that of the rain; with no data learnt as dry it would be half of it."""
    network = checkpoint.load(training.train(half_covered)).network
    wanted = get_quantity("rainfall_rate").scaling.encode(np.float32(RAIN))
    assert network.level.item() == pytest.approx(float(wanted), abs=0.03)
    assert losses(tmp_path)[-1] < 1e-3
    assert losses(tmp_path, "persistence_loss")[-1] < 1e-6


def test_an_error_counts_the_more_the_less_is_covered(half_covered: Recipe, tmp_path: Path) -> None:
    """The loss is a mean over what was measured, not over the frame: before the first step, that of the whole error."""
    still = half_covered.model_copy(
        update={"trainer": half_covered.trainer.model_copy(update={"epochs": 1, "learning_rate": 1e-9})}
    )
    training.train(still)
    wanted = get_quantity("rainfall_rate").scaling.encode(np.float32(RAIN))
    assert losses(tmp_path)[0] == pytest.approx((float(wanted) - 0.2) ** 2, rel=1e-3)
