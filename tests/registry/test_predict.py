"""What a network is given, and what becomes of what it returns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from nowcast.core.units import Scaling
from nowcast.models import Nowcaster
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Model, predict

SHIPPED = "lagrangian-radar.safetensors"


class Onward(Nowcaster):
    """A network that goes on by the difference of the two newest of its frames."""

    def __init__(self, *, in_steps: int, out_steps: int, channels: int = 1) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.given: list[list[float]] = []

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        self.given.append((100 * past_BTCHW[0, :, 0, 0, 0]).round().tolist())
        newest, before = past_BTCHW[:, -1:], past_BTCHW[:, -2:-1]
        return torch.cat([newest + ahead * (newest - before) for ahead in range(1, self.out_steps + 1)], dim=1)


def model(in_steps: int, out_steps: int) -> Model:
    network = Onward(in_steps=in_steps, out_steps=out_steps).eval()
    return Model("onward", network, "rainfall_rate", Scaling("linear", 0, 100), 300, "digest")


@pytest.mark.parametrize(
    ("in_steps", "out_steps", "given"),
    [
        (3, 2, [[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8]]),
        (3, 1, [[first, first + 1, first + 2] for first in range(7)]),
        (2, 5, [[0, 1], [5, 6]]),
        (2, 7, [[0, 1]]),
    ],
)
def test_a_network_is_fed_the_newest_frames_of_its_own(in_steps: int, out_steps: int, given: list) -> None:
    known = model(in_steps, out_steps)
    past = np.broadcast_to(np.arange(in_steps, dtype=np.float32)[:, None, None], (in_steps, 4, 4))
    made = predict(known, past, quantity="rainfall_rate", leads=7)
    assert made[:, 0, 0] == pytest.approx(np.arange(in_steps, in_steps + 7), abs=1e-3)
    assert known.network.given == given


def moving(speed: int) -> np.ndarray:
    """Four frames in which rain without end moves ``speed`` columns east, and a hole without data stands."""
    rng = np.random.default_rng(3)
    wide = np.kron(rng.gamma(0.8, 4.0, (12, 24)), np.ones((8, 8))).astype(np.float32)
    frames = np.stack([wide[:, 60 - speed * step : 156 - speed * step] for step in range(4)])
    frames[:, 40:56, 40:56] = np.nan
    return frames


def test_the_shipped_network_knows_only_what_moves_in_from_where_it_looked() -> None:
    """What comes over the border is not known, nor is what comes out of a hole; the rest is."""
    speed, leads = 3, 6
    shipped = checkpoint.load(checkpoint.find(SHIPPED))
    past = moving(speed)
    found = checkpoint.predict_distribution(shipped, past, quantity="rainfall_rate", leads=leads)
    unknown = np.isnan(found.values)
    for lead in range(leads):
        came = speed * (lead + 1)
        rows = slice(8, 32)  # away from the hole and the border that nothing crosses
        border = unknown[lead, rows].mean(axis=0)
        assert (border[: came - 2] > 0.9).all(), "from beyond the border"
        assert (border[came + 2 : -2] < 0.1).all()
        hole = unknown[lead, 44:52].mean(axis=0)
        assert (hole[40 + came + 2 : 56 + came - 2] > 0.9).all(), "the hole has moved on"
        assert (hole[came + 2 : 40 + came - 2] < 0.1).all()
        chance = found.exceedance[:, lead]
        np.testing.assert_array_equal(np.isnan(chance), np.broadcast_to(unknown[lead], chance.shape))
