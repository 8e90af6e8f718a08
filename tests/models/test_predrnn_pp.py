"""Numbers worked by hand for the causal LSTM and the gradient highway, and the options of PredRNN++."""

from __future__ import annotations

import math

import pytest
import torch

from nowcast.models import build
from nowcast.models.predrnn_pp import CausalLSTMCell, GradientHighway
from tests.models.test_models import frames, smallest
from tests.models.test_predrnn import pixel, sigmoid


def one_pixel_cell(**options: object) -> CausalLSTMCell:
    """One channel, one pixel, 1 x 1 kernels: gates are products of numbers."""
    cell = CausalLSTMCell(1, 1, 1, kernel=1, **options)
    values = {
        "conv_x": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
        "conv_h": [1.0, -1.0, 0.5, 2.0],
        "conv_c": [0.4, 0.3, -0.2],
        "conv_m": [0.3, 0.2, 0.1],
        "conv_c2m": [0.6, -0.7, 0.8, 0.9],
        "conv_om": [-0.5],
    }
    with torch.no_grad():
        for name, weights in values.items():
            getattr(cell, name)[0].weight.copy_(torch.tensor(weights).reshape(-1, 1, 1, 1))
        cell.conv_last.weight.copy_(torch.tensor([0.8, 0.4]).reshape(1, 2, 1, 1))
    return cell


@pytest.mark.parametrize("conv_c_reads", ["c", "m"])
def test_cell_by_hand(conv_c_reads):
    x, h, c, m = 2.0, 0.5, -0.4, 0.6
    read = {"c": c, "m": m}[conv_c_reads]
    forget, add = sigmoid(0.4 - 0.5 + 0.3 * read + 1), sigmoid(0.2 + 0.5 + 0.4 * read)
    new_c = forget * c + add * math.tanh(0.6 + 0.25 - 0.2 * read)
    add = sigmoid(0.8 + 0.3 * m + 0.6 * new_c)
    forget = sigmoid(1.0 + 0.2 * m + 0.8 * new_c + 1)
    new_m = forget * math.tanh(0.1 * m) + add * math.tanh(1.2 - 0.7 * new_c)
    gate = math.tanh(1.4 + 1.0 + 0.9 * new_c - 0.5 * new_m)
    (h1, c1), m1 = one_pixel_cell(conv_c_reads=conv_c_reads)(pixel(x), (pixel(h), pixel(c)), pixel(m))
    expected = gate * math.tanh(0.8 * new_c + 0.4 * new_m), new_c, new_m
    assert (h1.item(), c1.item(), m1.item()) == pytest.approx(expected, abs=1e-6)


def test_highway_by_hand():
    highway = GradientHighway(1, kernel=1)
    with torch.no_grad():
        highway.conv_x[0].weight.copy_(torch.tensor([0.5, 0.2]).reshape(2, 1, 1, 1))
        highway.conv_z[0].weight.copy_(torch.tensor([-0.3, 0.4]).reshape(2, 1, 1, 1))
    share = sigmoid(0.4 + 0.24)
    assert highway(pixel(2.0), pixel(0.6)).item() == pytest.approx(share * math.tanh(1 - 0.18) + (1 - share) * 0.6)


@pytest.mark.parametrize(("norm", "grid"), [(False, None), (True, None), (True, (5, 4))])
def test_none_stands_for_zeros(norm, grid):
    cell, highway = (
        CausalLSTMCell(3, 6, 4, kernel=3, norm=norm, grid=grid),
        GradientHighway(3, kernel=3, norm=norm, grid=grid),
    )
    x, zeros = frames(2, 3, 5, 4), torch.zeros(2, 4, 5, 4)
    with torch.no_grad():
        for parameter in (*cell.parameters(), *highway.parameters()):  # shifts other than 0
            parameter.add_(0.1)
    torch.testing.assert_close(cell(x, None, None), cell(x, (zeros, zeros), torch.zeros(2, 6, 5, 4)))
    torch.testing.assert_close(highway(x, None), highway(x, torch.zeros_like(x)))


def test_second_layer_reads_the_highway():
    model, seen = smallest("predrnn-pp"), []
    model.cells[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        _, (_, _, z) = model.step(model.embed(frames(1, 1, 8, 8)), None)
    assert seen[0] is z


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"widths": (64,)}, "needs a layer above and below it"),
        ({"conv_c_reads": "h"}, "Unknown conv_c_reads 'h'; known: c, m"),
        ({"conv_c_reads": "m", "widths": (16, 8)}, "what conv_c reads passes through all layers"),
        ({"grid": (16, 16)}, "together with layer_norm"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        build("predrnn-pp", in_steps=1, out_steps=1, **options)
