"""Numbers worked by hand for the spatiotemporal LSTM, and the options of PredRNN and PredRNN-V2."""

from __future__ import annotations

import math

import pytest
import torch

from nowcast.models import build
from nowcast.models.predrnn import STLSTMCell
from tests.models.test_models import frames, smallest


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def one_pixel_cell() -> STLSTMCell:
    """One channel, one pixel, 1 x 1 kernels: gates are products of numbers."""
    cell = STLSTMCell(1, 1, kernel=1)
    values = {"conv_x": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], "conv_h": [1.0, -1.0, 0.5, 2.0], "conv_m": [0.3, 0.2, 0.1]}
    with torch.no_grad():
        for name, weights in values.items():
            getattr(cell, name)[0].weight.copy_(torch.tensor(weights).reshape(-1, 1, 1, 1))
        cell.conv_o[0].weight.copy_(torch.tensor([0.5, -0.5]).reshape(1, 2, 1, 1))
        cell.conv_last.weight.copy_(torch.tensor([0.8, 0.4]).reshape(1, 2, 1, 1))
    return cell


def pixel(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), value)


@pytest.mark.parametrize("highway", [None, 0.9])
def test_cell_by_hand(highway):
    x, h, c, m = 2.0, 0.5, -0.4, 0.6
    new_c = sigmoid(0.4 - 0.5 + 1) * c + sigmoid(0.2 + 0.5) * math.tanh(0.6 + 0.25)
    new_m = sigmoid(1.0 + 0.12 + 1) * m + sigmoid(0.8 + 0.18) * math.tanh(1.2 + 0.06)
    gate = sigmoid(1.4 + 1.0 + 0.5 * new_c - 0.5 * new_m)
    shown = gate * math.tanh(0.8 * new_c + 0.4 * new_m) + (0 if highway is None else (1 - gate) * highway)
    inputs = pixel(x), (pixel(h), pixel(c)), pixel(m), None if highway is None else pixel(highway)
    (h1, c1), m1, _ = one_pixel_cell()(*inputs)
    assert (h1.item(), c1.item(), m1.item()) == pytest.approx((shown, new_c, new_m), abs=1e-6)


@pytest.mark.parametrize(("norm", "grid"), [(False, None), (True, None), (True, (5, 4))])
def test_none_stands_for_zeros(norm, grid):
    cell, x, zeros = STLSTMCell(3, 4, kernel=3, norm=norm, grid=grid), frames(2, 3, 5, 4), torch.zeros(2, 4, 5, 4)
    with torch.no_grad():
        for parameter in cell.parameters():  # shifts other than 0
            parameter.add_(0.1)
    torch.testing.assert_close(cell(x, None, None), cell(x, (zeros, zeros), zeros))


def test_memory_climbs_and_comes_back_to_the_bottom():
    """Layers that keep the memory hand it on; only the zigzag brings what the top wrote to the bottom."""
    model = smallest("predrnn")
    x = model.embed(frames(1, 1, 8, 8))
    _, (states, m) = model.step(x, None)
    (h, _), climbed, _ = model.cells[0](x, states[0], m)
    _, (after, _) = model.step(x, (states, m))
    torch.testing.assert_close(after[0][0], h)
    assert not torch.equal(climbed, m)


def test_likeness_of_equal_and_of_orthogonal_increments():
    model = smallest("predrnn-v2", out_steps=1)
    gates = torch.randn(2, 36, 6, 5)
    assert model.likeness(gates, gates).item() == pytest.approx(1, abs=1e-5)
    left, right = gates.clone(), gates.clone()
    left[:, 24:, :, 2:], right[:, 24:, :, :2] = 0, 0  # candidates that share no pixel
    assert model.likeness(left, right).item() == pytest.approx(0, abs=1e-6)


def test_decoupling_costs_nothing_in_a_forecast():
    model = smallest("predrnn-v2")
    del model.adapter
    assert model(frames(1, 3, 1, 8, 8)).shape == (1, 2, 1, 8, 8)
    assert model.step(model.embed(frames(1, 1, 8, 8)), None)[1][2] is None


def test_norms_bound_to_a_grid_work_on_others_in_a_forecast():
    model = build("predrnn:debug", in_steps=2, out_steps=1, layer_norm=True, grid=(16, 12)).eval()
    assert model(frames(1, 2, 1, 21, 30)).shape == (1, 1, 1, 21, 30)
    with pytest.raises(ValueError, match="bound to a grid of 16 x 12; frames are 16 x 16"):
        model.train().training_loss(frames(1, 2, 1, 16, 16), frames(1, 1, 1, 16, 16), 0.5)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"widths": (8, 16)}, "widths must be the same, since the memory passes through all layers"),
        ({"widths": ()}, "one layer or more"),
        ({"kernel": 4}, "kernel must be odd, got 4"),
        ({"grid": (16, 16)}, "together with layer_norm"),
        ({"grid": (16, 18), "layer_norm": True}, "divide by patch"),
        ({"sampling": "sometimes"}, "known: scheduled, reverse, never"),
        ({"sampling_until": 0}, r"\(0, 1\]"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        build("predrnn", in_steps=1, out_steps=1, **options)


def test_negative_decoupling_is_refused():
    with pytest.raises(ValueError, match="decoupling must be >= 0"):
        build("predrnn-v2", in_steps=1, out_steps=1, decoupling=-1)
