"""The network in coordinates that move with the rain."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nowcast.models import build
from nowcast.models.lagrangian import GROWTH, carry, trajectories, worth_a_hit

ALL = torch.ones(1, 1, 1, 1, 1)
"""A level may be forecast over all of the area."""


def network(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build("lagrangian:debug", in_steps=3, out_steps=4, **options).eval()


def moving_blob(steps: int, *, size: int = 96, speed: int = 3) -> torch.Tensor:
    """A blob that moves to higher columns, (1, steps, 1, size, size)."""
    rows, columns = np.mgrid[:size, :size]
    frames = [np.exp(-((rows - 48) ** 2 + (columns - 24 - speed * step) ** 2) / 60) for step in range(steps)]
    return torch.tensor(np.stack(frames), dtype=torch.float32)[None, :, None]


def test_trajectories_lead_back_to_where_the_rain_was() -> None:
    clip = moving_blob(8)
    ways = trajectories(clip[:, :4, 0], 4)
    assert ways.shape == (1, 4, 96, 96, 2)
    for step in range(4):
        carried = carry(clip[:, 3], ways[:, step])
        assert (carried - clip[:, 4 + step]).abs().max() < 0.25
        assert (carried - clip[:, 4 + step]).abs().max() < 0.5 * (clip[:, 3] - clip[:, 4 + step]).abs().max()


def test_past_frames_lie_where_their_rain_is_now() -> None:
    clip = moving_blob(4)[:, :, 0]
    aligned = network().aligned(clip[:, 1:], trajectories(clip[:, 1:], 4))
    torch.testing.assert_close(aligned[:, 0], clip[:, 3])  # the newest stays
    assert (aligned[:, 1:] - clip[:, 3:]).abs().max() < 0.25


def test_a_cut_by_hand() -> None:
    """Of four pixels with 0.9, 0.5, 0.2 and 0.1 the two surest promise the best index: 1.4 / (2 + 1.7 - 1.4)."""
    chance = torch.tensor([[0.9, 0.5], [0.2, 0.1]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    known = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    index = 1.4 / 2.3
    cut = worth_a_hit(chance[None, None, None], known, ALL, bias=10).item()
    assert cut == pytest.approx(index / (1 + index), rel=1e-4)
    # Of the area expected, 1.7, half is less than one pixel, and all of it is one pixel.
    assert worth_a_hit(chance[None, None, None], known, ALL, bias=0.5).item() > 0.9
    assert 0.5 < worth_a_hit(chance[None, None, None], known, ALL, bias=1).item() <= 0.9


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=12))
def test_no_other_cut_promises_a_better_index(chances: list[float]) -> None:
    chance = torch.tensor(chances, dtype=torch.float64)
    grid = chance.repeat_interleave(2)[None].expand(2, -1)[None, None, None]  # every second pixel is looked at
    cut = worth_a_hit(grid, torch.ones(1, 1, *grid.shape[-2:], dtype=torch.bool), ALL, bias=1e3).item()

    def promised(limit: float) -> float:
        over = chance >= limit
        return float(chance[over].sum() / (over.sum() + chance[~over].sum()))

    assert promised(cut * (1 - 1e-9)) == pytest.approx(max(promised(limit) for limit in chances), rel=1e-6)


def test_what_is_not_known_does_not_count() -> None:
    chance = torch.rand(1, 1, 1, 8, 8)
    known = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    known[..., 4:] = False
    torch.testing.assert_close(worth_a_hit(chance, known, ALL), worth_a_hit(chance[..., :4], known[..., :4], ALL))


def test_the_mean_is_the_integral_of_the_probabilities() -> None:
    """Levels 1, 2, 4 of a linear scale, by the trapezoidal rule."""
    model = network(levels=(1.0, 2.0, 4.0), span=0.0)
    chance = torch.tensor([1.0, 0.0, 0.0]).view(1, 1, 3, 1, 1)
    assert model.mean(chance).item() == pytest.approx(1.0)  # (1 + 1) / 2: what lies below counts for half of itself
    assert model.mean(torch.ones(1, 1, 3, 1, 1)).item() == pytest.approx(1.0 + 1.5 + 2.0)


def test_a_field_reaches_the_levels_that_are_worth_it() -> None:
    levels = (0.2, 0.4, 0.6)
    model = network(levels=levels)
    chance = torch.rand(1, 4, 3, 16, 16).cummin(2).values
    known = torch.ones(1, 4, 16, 16, dtype=torch.bool)
    newest = torch.ones(1, 16, 16)
    field, cut = model.field(chance, known, newest), worth_a_hit(chance, known, GROWTH * ALL)
    for place, level in enumerate(levels):
        wanted = (chance[:, :, place:] >= cut[:, :, place:]).any(2)
        assert torch.equal(field >= level, wanted)
    known[..., 0, 0] = False
    assert model.field(chance, known, newest).isnan().sum() == 4
    dry = model.field(chance, known, 0 * newest)
    assert dry.nan_to_num().max() < 0.2  # what is nowhere now is not forecast


def test_probabilities_do_not_rise_with_the_level() -> None:
    chance, known = network().exceedance(torch.rand(2, 3, 1, 40, 50))
    assert chance.shape == (2, 4, 3, 40, 50) and known.shape == (2, 4, 40, 50)
    assert (chance.diff(dim=2) <= 0).all() and chance.min() >= 0 and chance.max() <= 1


def test_what_nobody_expects_is_not_forecast() -> None:
    """A ten-thousandth everywhere promises a tenth of a pixel: no pixel is worth it."""
    chance, known = torch.full((1, 4, 3, 32, 32), 1e-4), torch.ones(1, 4, 32, 32, dtype=torch.bool)
    field = network().field(chance, known, torch.ones(1, 32, 32))
    assert torch.equal(field, torch.zeros_like(field))


def test_a_chosen_loss_compares_the_mean() -> None:
    from nowcast.models.losses import mse

    model = network().train()
    model.loss = mse
    past, future = torch.rand(1, 3, 1, 32, 32), torch.rand(1, 4, 1, 32, 32)
    loss = model.training_loss(past, future, 0.0)
    assert loss.isfinite()
    loss.backward()
    assert model.linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"levels": (0.5,), "importance": (1,)}, "must be two or more and ascend"),
        ({"levels": (0.5, 0.5, 0.6)}, "must be two or more and ascend"),
        ({"importance": (1, 2)}, "needs a weight for each of 3 levels"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        network(**options)


def test_default_levels_are_rates_on_the_usual_scale() -> None:
    model = build("lagrangian", in_steps=4, out_steps=1)
    rates = 0.05 * model.rate(model.levels)
    torch.testing.assert_close(rates, 0.999 * torch.tensor([0.1, 0.5, 1, 2, 5, 10, 20, 40]), rtol=1e-4, atol=0)
    assert model.span == pytest.approx(math.log(2000))
