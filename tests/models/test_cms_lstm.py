"""Blocks of CMS-LSTM beside what their formulas say, written out."""

from __future__ import annotations

import pytest
import torch

from nowcast.models import build
from nowcast.models.cms_lstm import CMSCell, ContextEmbedding, SpatiotemporalExpression


def fields(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(4)) - 0.5


def test_context_embedding_scales_in_turns():
    block = ContextEmbedding(3, 4, kernel=3)
    x, h = fields(2, 3, 5, 6), fields(2, 4, 5, 6)
    expected_x, expected_h = x, h
    for turn in range(5):
        if turn % 2 == 0:
            expected_x = 2 * block.to_input(expected_h).sigmoid() * expected_x
        else:
            expected_h = 2 * block.to_hidden(expected_x).sigmoid() * expected_h
    torch.testing.assert_close(block(x, h), (expected_x, expected_h))


@pytest.mark.parametrize("grid", [None, (4, 8)])
def test_no_state_is_a_state_of_zeros(grid):
    torch.manual_seed(0)
    cell = CMSCell(6, kernel=3, grid=grid, scales=2)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, zeros = fields(2, 6, 4, 8), torch.zeros(2, 6, 4, 8)
    torch.testing.assert_close(cell(x, None), cell(x, (zeros, zeros)), rtol=1e-4, atol=1e-5)


def test_expression_attends_within_blocks_of_both_states():
    """Every scale beside attention written out for each block, with keys that are projected."""
    torch.manual_seed(0)
    block = SpatiotemporalExpression(5, scales=3)
    h, c = fields(2, 5, 8, 4), fields(2, 5, 8, 4) * 2
    both = torch.cat([h, c], dim=3)
    weights = [layer.weight.chunk(3) for layer in (block.query, block.key, block.value)]
    biases = [layer.bias.chunk(3) for layer in (block.query, block.value)]
    found = block.attended(h, c)
    for scale in range(3):
        query, key, value = (torch.einsum("oc,bchw->bohw", kind[scale], both) for kind in weights)
        query, value = query + biases[0][scale][:, None, None], value + biases[1][scale][:, None, None]
        expected = both.clone()
        rows, columns = 8 // 2**scale, 4 // 2**scale
        for top in range(0, 8, rows):
            for left in range(0, 4, columns):
                places = [(slice(top, top + rows), slice(start, start + columns)) for start in (left, 4 + left)]
                q, k, v = (
                    torch.cat([part[:, :, down, across].flatten(2) for down, across in places], dim=2)
                    for part in (query, key, value)
                )
                gathered = v @ (q.mT @ k).softmax(-1).mT
                for (down, across), part in zip(places, gathered.chunk(2, dim=2), strict=True):
                    expected[:, :, down, across] += part.unflatten(2, (rows, columns))
        torch.testing.assert_close(found[:, 5 * scale : 5 * (scale + 1)], expected, rtol=1e-4, atol=1e-5)


def test_first_prediction_does_not_count():
    """Of three frames in and two out, the predictions of frames 2, 3 and 4 do; of one frame in, all do."""
    seen = []
    for in_steps in (3, 1):
        model = build("cms-lstm:debug", in_steps=in_steps, out_steps=2)
        model.error = lambda made, truth, weight: seen.append(made.shape[1]) or made.sum()
        model.training_loss(fields(1, in_steps, 1, 8, 8), fields(1, 2, 1, 8, 8), 0.0)
    assert seen == [3, 2]


@pytest.mark.parametrize("blocks", [{"context": True}, {"expression": True}, {"context": True, "expression": True}])
@pytest.mark.parametrize("norms", [{}, {"layer_norm": True, "grid": (16, 24)}])
def test_blocks_plug_into_predrnn(blocks, norms):
    """They learn, and forecast on any grid."""
    model = build("predrnn:debug", in_steps=2, out_steps=2, **blocks, **norms)
    model.training_loss(fields(2, 2, 1, 16, 24), fields(2, 2, 1, 16, 24), 0.5).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())
    with torch.no_grad():
        assert model.eval()(fields(1, 2, 1, 18, 11)).shape == (1, 2, 1, 18, 11)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"kernel": 4}, "kernel must be odd, got 4"),
        ({"layers": 0}, "layers, width and scales must be >= 1"),
        ({"grid": (64, 40)}, r"divide by patch \* 4, got grid \(64, 40\) and patch 4"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        build("cms-lstm", in_steps=1, out_steps=1, **options)
