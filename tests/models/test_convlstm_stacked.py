"""Numbers worked by hand for the stacked ConvLSTM's cell, and its options."""

from __future__ import annotations

import math

import pytest
import torch

from nowcast.models import build
from nowcast.models.convlstm_stacked import ConvLSTMCell
from tests.models.test_models import frames
from tests.models.test_predrnn import pixel, sigmoid


@pytest.mark.parametrize("highway", [None, 0.9])
@pytest.mark.parametrize("shown", ["cell", "candidate"])
def test_cell_by_hand(shown, highway):
    cell, x, h, c = ConvLSTMCell(1, 1, kernel=1, shown=shown), 2.0, 0.5, -0.4
    with torch.no_grad():
        cell.conv_x[0].weight.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).reshape(4, 1, 1, 1))
        cell.conv_h[0].weight.copy_(torch.tensor([1.0, -1.0, 0.5, 2.0]).reshape(4, 1, 1, 1))
    candidate, gate = math.tanh(0.6 + 0.25), sigmoid(0.8 + 1.0)
    new_c = sigmoid(0.4 - 0.5) * c + sigmoid(0.2 + 0.5) * candidate
    content = {"cell": math.tanh(new_c), "candidate": candidate}[shown]
    expected = gate * content + (0 if highway is None else (1 - gate) * highway)
    h1, c1 = cell(pixel(x), (pixel(h), pixel(c)), None if highway is None else pixel(highway))
    assert h1.item() == pytest.approx(expected, abs=1e-6)
    assert c1 is None if shown == "candidate" else c1.item() == pytest.approx(new_c, abs=1e-6)


@pytest.mark.parametrize(("norm", "grid"), [(False, None), (True, None), (True, (5, 4))])
def test_none_stands_for_zeros(norm, grid):
    cell, x, zeros = ConvLSTMCell(3, 4, kernel=3, norm=norm, grid=grid), frames(2, 3, 5, 4), torch.zeros(2, 4, 5, 4)
    with torch.no_grad():
        for parameter in cell.parameters():  # shifts other than 0
            parameter.add_(0.1)
    torch.testing.assert_close(cell(x, None), cell(x, (zeros, zeros)))


def test_layers_may_differ_in_width():
    model = build("convlstm-stacked:debug", in_steps=2, out_steps=2, widths=(6, 10, 4))
    assert model(frames(1, 2, 1, 9, 12)).shape == (1, 2, 1, 9, 12)


@pytest.mark.parametrize(
    ("options", "fault"),
    [({"shown": "gate"}, "Unknown shown 'gate'; known: cell, candidate"), ({"grid": (16, 16)}, "with layer_norm")],
)
def test_options_that_do_not_fit_are_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        build("convlstm-stacked", in_steps=1, out_steps=1, **options)
