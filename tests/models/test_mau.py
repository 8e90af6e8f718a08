"""MAU: what the unit remembers and compares, its modes, which options it refuses."""

from __future__ import annotations

import pytest
import torch

from nowcast.models import build
from nowcast.models.mau import MAUCell


def test_state_holds_the_last_steps():
    cell, state = MAUCell(3, kernel=3, tau=2), None
    fields = torch.rand(4, 1, 3, 5, 6)
    for s in fields:
        _, state = cell(s, state)
    inputs, memories = state
    torch.testing.assert_close(torch.stack(inputs), fields[2:])
    assert len(memories) == 2


def test_steps_before_the_first_count_as_zeros():
    """Zeros that are kept and multiplied give what is computed without them."""
    cell, s, old = MAUCell(3, kernel=3, tau=3), torch.rand(2, 3, 5, 6), torch.rand(2, 3, 5, 6)
    zeros = torch.zeros(2, 3, 5, 6)
    torch.testing.assert_close(cell(s, None)[0], cell(s, ((zeros,) * 3, (zeros,) * 3))[0])
    torch.testing.assert_close(cell(s, ((old,), (s,)))[0], cell(s, ((zeros, zeros, old), (zeros, zeros, s)))[0])


def test_trend_by_hand():
    """Two steps of the past as like to the query as nothing, one unlike it: equal thirds, or nearly none of it."""
    cell = MAUCell(1, kernel=1, tau=3)
    cell.norm_query.forward = lambda query: query
    query, memory = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0)
    torch.testing.assert_close(cell._trend(query, 0 * query, memory), memory / 3)
    assert cell._trend(query, -50 * query, memory).max() < 1e-3
    torch.testing.assert_close(cell._trend(query, 50 * query, memory), memory)


def test_residual_adds_the_input():
    cell, s = MAUCell(3, kernel=3, tau=2), torch.rand(1, 3, 4, 4)
    plain, _ = cell(s, None)
    cell.residual = True
    torch.testing.assert_close(cell(s, None)[0], plain + s)


@pytest.mark.parametrize("grid", [None, (24, 40)])
@pytest.mark.parametrize("mode", ["normal", "recall"])
def test_modes_and_grids(mode, grid):
    model = build("mau", in_steps=2, out_steps=2, width=4, layers=2, downscale=8, model_mode=mode, grid=grid).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, 2, 1, 30, 41)).shape == (1, 2, 1, 30, 41)


def test_recall_changes_the_frame():
    kept = {}
    for mode in ("normal", "recall"):
        torch.manual_seed(0)
        kept[mode] = build("mau:debug", in_steps=2, out_steps=1, model_mode=mode)
    past = torch.rand(1, 2, 1, 8, 8)
    assert not torch.allclose(kept["normal"](past), kept["recall"](past))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"tau": 0}, ">= 1"),
        ({"kernel": 2}, "odd"),
        ({"downscale": 3}, "power of 2"),
        ({"cell_mode": "plain"}, "Unknown cell_mode 'plain'; known: normal, residual"),
        ({"model_mode": "forget"}, "Unknown model_mode 'forget'; known: normal, recall"),
        ({"grid": (30, 32)}, "divide by 4"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        build("mau", in_steps=1, out_steps=1, **options)
