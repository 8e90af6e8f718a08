"""Losses: values worked out by hand, masks honoured, and every network trains with every loss."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
import xarray as xr
from scores.probability import crps_for_ensemble
from scores.spatial import fss_2d_single_field
from torch import Tensor, distributed, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models import LOSSES, MODELS, build, loss, loss_options, model_class
from nowcast.models.losses import balanced, bce, crps, fss, mae, mse, multiscale, spectral

OPTIONS: dict[str, dict] = {
    "balanced": {"limits": (0.5,), "weights": (1, 3)},
    "fss": {"limits": (0.5,), "sides": (3,)},
    "crps": {"members": 2},
}
TRAINABLE = [name for name in MODELS if model_class(name).trainable]


def frame(*rows: list[float]) -> Tensor:
    """One sample, one frame, one channel."""
    return torch.tensor(rows, dtype=torch.float32)[None, None, None]


def fields(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- over the table -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_forecast_costs_least_and_the_gradient_leads_there(name: str) -> None:
    chosen = loss(name, **OPTIONS.get(name, {}))
    truth = (fields(2, 3, 1, 16, 12) > 0.5).float()
    made = fields(2, 3, 1, 16, 12, seed=1).requires_grad_()
    off = chosen(made, truth, None)
    off.backward()
    assert off > chosen(truth, truth, None) >= 0
    assert chosen((made - 1e-3 * made.grad / made.grad.norm()).detach(), truth, None) < off


@pytest.mark.parametrize("name", LOSSES)
def test_what_was_not_measured_does_not_count(name: str) -> None:
    chosen = loss(name, **OPTIONS.get(name, {}))
    made, truth = fields(2, 3, 1, 16, 12).requires_grad_(), fields(2, 3, 1, 16, 12, seed=1)
    weight = torch.ones_like(truth)
    weight[..., :5] = 0
    other = torch.where(weight > 0, truth, 0.9)
    found = chosen(made, truth, weight)
    assert torch.equal(found, chosen(made, other, weight))
    found.backward()
    assert made.grad is not None
    assert made.grad[..., :5].abs().max() == 0
    assert float(chosen(made, truth, torch.zeros_like(truth)).detach()) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_documented_and_takes_options_by_keyword(name: str) -> None:
    function = loss(name, **OPTIONS.get(name, {})).func  # type: ignore[attr-defined]
    assert (function.__doc__ or "").splitlines()[0].endswith((".", ";", ":"))
    assert list(inspect.signature(function).parameters)[:3] == ["made", "truth", "weight"]


@pytest.mark.parametrize("model", TRAINABLE)
def test_every_network_trains_with_a_chosen_loss(model: str) -> None:
    """What is compared is up to the recipe, what is fed and regularised to the network."""
    torch.manual_seed(0)
    network = build(f"{model}:debug", in_steps=3, out_steps=2)
    calls: list[tuple[int, ...]] = []

    def chosen(made: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
        calls.append(tuple(made.shape))
        assert made.shape == truth.shape
        return mae(made, truth, weight)

    network.loss = chosen
    clip = fields(2, 5, 1, 16, 16)
    network.training_loss(clip[:, :3], clip[:, 3:], 0.5, torch.ones(2, 2, 1, 16, 16)).backward()
    assert calls
    assert any(weight.grad is not None and weight.grad.any() for weight in network.parameters())


def test_unknown_names_and_options_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="Unknown loss 'mes'; known: mse, mae, balanced"):
        loss("mes")
    with pytest.raises(ValueError, match="Unknown option limit of balanced; known: limits, weights, squared, absolute"):
        loss("balanced", limit=2)
    with pytest.raises(ValueError, match="Loss fss needs limits"):
        loss("fss")
    assert loss_options("crps") == {"members": True}


# --- by hand --------------------------------------------------------------------------------------


def test_errors_by_hand() -> None:
    made, truth, weight = frame([0.5, 1.0, 0.0]), frame([0.0, 1.0, 1.0]), frame([1.0, 1.0, 2.0])
    assert mse(made, truth).item() == pytest.approx(1.25 / 3)
    assert mae(made, truth).item() == pytest.approx(0.5)
    assert mse(made, truth, weight).item() == pytest.approx((0.25 + 2) / 4)
    assert mae(made, truth, weight).item() == pytest.approx((0.5 + 2) / 4)


def test_errors_are_summed_where_the_recipe_says_so() -> None:
    made, truth, weight = frame([0.5, 1.0, 0.0]), frame([0.0, 1.0, 1.0]), frame([1.0, 1.0, 2.0])
    assert mse(made, truth, reduction="sum").item() == pytest.approx(1.25)
    assert mae(made, truth, weight, reduction="sum").item() == pytest.approx(2.5)
    with pytest.raises(OptionError, match="Unknown reduction 'total'; known: mean, sum"):
        mse(made, truth, reduction="total")


def test_processes_that_train_together_sum_over_all_of_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are averaged: the mean over the processes is the sum of all."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)
    assert mse(frame([1.0]), frame([0.0]), reduction="sum").item() == 3


def test_cross_entropy_by_hand() -> None:
    """As torch has it inside (0, 1), as a sum and a mean; the gradient leads back from beyond."""
    made, truth, weight = fields(2, 3, 1, 4, 4), fields(2, 3, 1, 4, 4, seed=1), fields(2, 3, 1, 4, 4, seed=2)
    for reduction in ("mean", "sum"):
        wanted = functional.binary_cross_entropy(made, truth, reduction=reduction)
        assert bce(made, truth, reduction=reduction).item() == pytest.approx(wanted.item(), rel=1e-5)
    wanted = functional.binary_cross_entropy(made, truth, weight, reduction="sum") / weight.sum()
    assert bce(made, truth, weight).item() == pytest.approx(wanted.item(), rel=1e-5)
    beyond = frame([-0.5, 1.5]).requires_grad_()
    bce(beyond, frame([1.0, 0.0]), reduction="sum").backward()
    assert beyond.grad is not None
    assert beyond.grad.flatten().tolist() == [-1, 1]
    assert torch.isfinite(bce(frame([0.0, 1.0]).half(), frame([1.0, 0.0]).half()))


def test_balanced_by_hand() -> None:
    """Errors of 0.5 where the weight is 1, and 30: (0.25 + 0.5) * (1 + 30) / 2; the mask leaves one."""
    made, truth, limits = frame([0.5, 0.5]), frame([0.0, 1.0]), (0.2, 0.4, 0.6, 0.8)
    assert balanced(made, truth, limits=limits).item() == pytest.approx(0.75 * 15.5)
    assert balanced(made, truth, frame([1.0, 0.0]), limits=limits).item() == pytest.approx(0.75)
    assert balanced(made, truth, limits=limits, squared=0).item() == pytest.approx(0.5 * 15.5)


def test_the_weight_steps_up_at_every_limit() -> None:
    """A pixel at a limit counts as one above it: errors of 1 at weights 1, 2, 2, 5."""
    truth = frame([0.1, 0.5, 0.6, 0.9])
    assert balanced(truth + 1, truth, limits=(0.5, 0.8), weights=(1, 2, 5), absolute=0).item() == pytest.approx(2.5)


@pytest.mark.parametrize("options", [{"limits": (0.5, 0.2), "weights": (1, 2, 3)}, {"limits": (0.5,)}])
def test_limits_that_do_not_fit_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="limits must rise, with one weight more than limits"):
        balanced(frame([0.0]), frame([0.0]), **options)


def test_multiscale_by_hand() -> None:
    """Rain one pixel off: error 2 / 4 by pixels, 0 by squares of two; the mask leaves one pixel of each square."""
    made, truth = frame([1, 0], [0, 0]), frame([0, 1], [0, 0])
    assert multiscale(made, truth, scales=(1,)).item() == pytest.approx(0.5)
    assert multiscale(made, truth, scales=(1, 2)).item() == pytest.approx(0.25)
    weight = frame([1, 0], [0, 0])
    assert multiscale(made, truth, weight, scales=(1, 2)).item() == pytest.approx(1.0)


def test_multiscale_keeps_what_sticks_out_at_the_border() -> None:
    made, truth = frame([0, 0, 1]), frame([0, 0, 0])
    assert multiscale(made, truth, scales=(2,)).item() == pytest.approx(1 / 3), "of three pixels one is off"


def test_spectral_by_hand() -> None:
    """A pair of pixels [a, b] has the powers (a + b)² / 2 and (a - b)² / 2; the mirror image has the same."""
    made, truth, floor = frame([1.0, 0.0]), frame([0.5, 0.5]), 0.1
    wanted = (math.log(0.5 + floor) - math.log(0.5 + floor)) ** 2 + (math.log(0.5 + floor) - math.log(floor)) ** 2
    assert spectral(made, truth, floor=floor).item() == pytest.approx(wanted / 2)
    assert spectral(made, made.flip(-1)).item() == pytest.approx(0, abs=1e-6)


def test_fss_by_hand() -> None:
    """One event, forecast one pixel off in a row of five; shares in threes are 1/3 beside and at it."""
    made, truth = frame([0, 1, 0, 0, 0]), frame([0, 0, 1, 0, 0])
    row = [part.expand(1, 1, 1, 3, 5) for part in (made, truth)]
    assert fss(*row, limits=(0.5,), sides=(1,), softness=1e-3).item() == pytest.approx(1.0)
    forecast = np.array([[2, 2, 2, 0, 0], [3, 3, 3, 0, 0], [2, 2, 2, 0, 0]]) / 9
    observed = np.roll(forecast, 1, axis=1)
    wanted = ((forecast - observed) ** 2).sum() / max((forecast**2 + observed**2).sum(), 1)
    assert fss(*row, limits=(0.5,), sides=(3,), softness=1e-3).item() == pytest.approx(wanted)


def test_fss_is_that_of_scores() -> None:
    """With a dry rim, since theirs counts windows beyond the border twice."""
    made, truth = (nn.functional.pad(fields(1, 1, 1, 16, 16, seed=seed), (5, 5, 5, 5)) for seed in (0, 1))
    plain = made[0, 0, 0].numpy(), truth[0, 0, 0].numpy()
    wanted = fss_2d_single_field(*plain, event_threshold=0.6, window_size=(5, 5), zero_padding=True)
    assert 1 - fss(made, truth, limits=(0.6,), sides=(5,), softness=1e-7).item() == pytest.approx(wanted, abs=1e-5)


def test_fss_of_even_neighbourhoods_is_refused() -> None:
    with pytest.raises(ValueError, match="sides must be odd"):
        fss(frame([0.0]), frame([0.0]), limits=(0.5,), sides=(4,))


def test_crps_by_hand() -> None:
    """Members 0 and 1 around 0.5: error 0.5, less half the spread of 1; twice the same member is a plain forecast."""
    truth = frame([0.5]).repeat(2, 1, 1, 1, 1)
    made = torch.cat([frame([0.0]), frame([1.0])])
    assert crps(made, truth, members=2).item() == pytest.approx(0.0)
    assert crps(frame([0.2]).repeat(2, 1, 1, 1, 1), truth, members=2).item() == pytest.approx(0.3)
    assert crps(frame([0.2]), frame([0.5]), members=1).item() == pytest.approx(0.3)


def test_crps_is_that_of_scores() -> None:
    made, truth = fields(3 * 2, 1, 1, 4, 4), fields(2, 1, 1, 4, 4, seed=1)
    weight = (fields(2, 1, 1, 4, 4, seed=2) > 0.3).float()
    table = xr.DataArray(made.unflatten(0, (3, 2)).numpy(), dims=("member", "b", "t", "c", "y", "x"))
    observed = xr.DataArray(truth.numpy(), dims=("b", "t", "c", "y", "x"))
    wanted = crps_for_ensemble(table, observed, "member", method="fair", preserve_dims="all")
    repeated = [part.repeat(3, 1, 1, 1, 1) for part in (truth, weight)]
    mean = float((wanted.values * weight.numpy()).sum() / weight.sum())
    assert crps(made, *repeated, members=3).item() == pytest.approx(mean, abs=1e-6)
