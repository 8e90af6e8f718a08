"""Earthformer: where attention looks, global vectors, positions on other grids, which options it refuses."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nowcast.models import build
from nowcast.models.earthformer import AXES, AxialAttention, CrossAttention, Positions, RelativeBias, _attend_to_both


@pytest.mark.parametrize("axis", AXES)
def test_attention_stays_on_its_line(axis):
    attention = AxialAttention(8, axis=axis, length=4, heads=2, dropout=0.0).eval()
    x = torch.rand(1, 3, 4, 5, 8)
    changed = x.clone()
    changed[0, 1, 2, 3, 0] += 1
    differs = (attention(changed, None)[0] - attention(x, None)[0]).abs().amax(-1)[0] > 1e-7
    line = [1, 2, 3]
    line[axis - 1] = slice(None)
    expected = torch.zeros(3, 4, 5, dtype=torch.bool)
    expected[tuple(line)] = True
    assert torch.equal(differs, expected)


def test_cross_attention_stays_on_its_pixel():
    attention, x, past = (
        CrossAttention(8, length=7, heads=2, dropout=0.0),
        torch.rand(1, 3, 4, 5, 8),
        torch.rand(1, 4, 4, 5, 8),
    )
    changed = past.clone()
    changed[0, 2, 1, 1] += 1
    differs = (attention(x, changed) - attention(x, past)).abs().amax((0, 1, 4)) > 1e-7
    assert differs.nonzero().tolist() == [[1, 1]]


def test_bias_depends_on_distance_and_ends_at_its_reach():
    bias = RelativeBias(3, 1)
    bias.table.data = torch.arange(5.0)[:, None]
    assert bias(3, 3)[0].tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
    assert bias(1, 5)[0].tolist() == [[2, 1, 0, 0, 0]]


def test_one_softmax_over_both_kinds():
    first, second = torch.rand(3, 2, 4, 5, 6), torch.rand(3, 2, 4, 5, 6)
    bias = torch.rand(4, 5, 5)
    found = _attend_to_both(tuple(first), tuple(second), bias, 0.0)
    scores = [functional.pad(bias, (0, 5))[None], *(q @ k.mT / 6**0.5 for q, k, _ in (first, second))]
    shares = (torch.cat(scores[1:], dim=-1) + scores[0]).softmax(-1)
    torch.testing.assert_close(found, shares @ torch.cat((first[2], second[2]), dim=2))


def test_global_vectors_carry_across_lines():
    """They see every pixel of their own sample, and every pixel sees them, one layer later than each other."""
    attention = AxialAttention(8, axis=1, length=3, heads=2, dropout=0.0, reads_global=True, updates_global=True)
    x, vectors = torch.rand(2, 3, 2, 2, 8), torch.rand(2, 4, 8)
    changed = x.clone()
    changed[0, 0, 0, 0, 0] += 1
    (same, before), (other, after) = attention(x, vectors), attention(changed, vectors)
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1], after[1])
    torch.testing.assert_close(same[0, :, 1, 1], other[0, :, 1, 1])
    assert not torch.allclose(attention(x, torch.rand(2, 4, 8))[0], same)


@pytest.mark.parametrize("apart", [True, False])
def test_positions_are_interpolated_on_other_grids(apart):
    positions = Positions(4, 3, (5, 6), apart=apart)
    own, finer = positions(5, 6), positions(9, 11)
    assert own.shape == (3, 5, 6, 4)
    torch.testing.assert_close(finer[:, ::2, ::2], own)
    torch.testing.assert_close(finer[:, 1, 0], (own[:, 0, 0] + own[:, 1, 0]) / 2)


def test_frames_may_come_out_in_any_number():
    model = build("earthformer:debug", in_steps=2, out_steps=5, channels=2).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, 2, 2, 18, 33)).shape == (1, 5, 2, 18, 33)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"stem_widths": (16, 64)}, "one value >= 1 per stage"),
        ({"stem_widths": (9, 64, 128)}, "multiples of 4"),
        ({"depth": ()}, "one level or more"),
        ({"heads": 3}, "divide the last of stem_widths, 128"),
        ({"dropout": 1.0}, "dropout"),
        ({"grid": (100, 384)}, "divide by 24"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        build("earthformer:sevir", in_steps=2, out_steps=2, **options)
