"""SwinLSTM: windows, their bias and their order; the cell; options."""

from __future__ import annotations

import pytest
import torch

from nowcast.models import build
from nowcast.models.swin_lstm import (
    APART,
    Block,
    Cell,
    by_row,
    by_window,
    fused_attention,
    plain_attention,
    position_bias,
    relative_position,
    shifted_windows,
)

CPU = torch.device("cpu")


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) - 0.5


def places(height: int, width: int) -> torch.Tensor:
    """A grid whose value is 10 * row + column."""
    return (10 * torch.arange(height)[:, None] + torch.arange(width)).view(1, height, width, 1)


def test_tokens_are_sorted_by_window_and_back():
    grid = places(4, 6)
    tokens = by_window(grid, 2)
    assert tokens[0, 0, 0, :, 0].tolist() == [0, 1, 10, 11]
    assert tokens[0, 1, 2, :, 0].tolist() == [24, 25, 34, 35]
    assert torch.equal(by_row(tokens, 2), grid)


def test_relative_position_is_row_then_column_difference():
    index = relative_position(2, CPU).view(4, 4)  # tokens (0, 0), (0, 1), (1, 0), (1, 1)
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def test_shifted_windows_wrap_around_and_keep_edges_apart():
    order, apart = shifted_windows(2, 2, 2, 1, CPU)
    shifted = by_window(places(4, 4), 2).flatten()[order].view(4, 4)
    assert shifted.tolist() == [[11, 12, 21, 22], [13, 10, 23, 20], [31, 32, 1, 2], [33, 30, 3, 0]]
    assert not apart[0].any()
    assert (apart[1] / APART).tolist() == [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    assert (apart[3] / APART).tolist() == (1 - torch.eye(4)).tolist()


@pytest.mark.parametrize("windows", [1, 6])
def test_both_kernels_compute_the_same_attention(windows):
    q, k, v = noise(3, 2, 6, 3, 4, 8)
    bias = noise(windows, 3, 4, 4)
    torch.testing.assert_close(plain_attention(q, k, v, bias), fused_attention(q, k, v, bias))
    scores = (q @ k.transpose(-1, -2) / 8**0.5 + bias).softmax(-1)
    torch.testing.assert_close(plain_attention(q, k, v, bias), scores @ v)


def test_zero_context_is_left_out_without_a_difference():
    block, x = Block(8, 2, 2, context=True, drop_path=0.0), noise(2, 3, 2, 4, 8)
    torch.nn.init.normal_(block.norm1.bias)
    bias = position_bias(block.table, 2, None)
    torch.testing.assert_close(block(x, None, bias), block(x, torch.zeros_like(x), bias))


def test_one_gate_forgets_writes_and_shows():
    """Blocks that hand their input on: x = 0 opens the gate by half, and writes nothing."""
    cell = Cell(4, 1, 2, [0.0, 0.0])
    for block in cell.blocks:
        for layer in (block.project, block.mlp2):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    x = noise(1, 2, 2, 4, 4)
    h, memory = cell(x, None)
    torch.testing.assert_close(memory.c, x.sigmoid() * x.tanh())
    torch.testing.assert_close(h, x.sigmoid() * memory.c.tanh())
    h, after = cell(torch.zeros_like(x), memory)
    torch.testing.assert_close(after.c, memory.c / 2)
    torch.testing.assert_close(h, after.c.tanh() / 2)


def test_shifted_windows_let_rain_cross_the_seams():
    """A token reaches another window only through the shifted block, and never the opposite edge."""
    cell = Cell(8, 2, 2, [0.0, 0.0]).eval()
    x = noise(1, 3, 3, 4, 8).requires_grad_()
    by_row(cell(x, None)[0], 2)[0, 0, 0].sum().backward()
    reached = by_row(x.grad, 2)[0].abs().sum(-1) > 1e-9
    assert reached[:2, :2].all()
    assert not reached[3:, :].any()
    by_row(cell(x, None)[0], 2)[0, 1, 1].sum().backward()
    reached = by_row(x.grad, 2)[0].abs().sum(-1) > 1e-9
    assert reached[:4, :4].all()
    assert not reached[4:].any()
    assert not reached[:, 4:].any()


@pytest.mark.parametrize("patch", [1, 2, 3, 4])
def test_every_pixel_is_reached_from_the_tokens_of_any_patch(patch):
    model = build("swinlstm-b:debug", in_steps=2, out_steps=1, patch=patch)
    for weight in model.unembedding.parameters():
        torch.nn.init.ones_(weight)
    tokens = torch.ones(1, 2, 2, 4, 16)
    frames = model.head(tokens)
    assert frames.shape == (1, 1, 4 * patch, 4 * patch)
    assert (frames > torch.tensor(1.0).sigmoid()).all()


def test_drop_path_leaves_whole_samples_out():
    block, x = Block(8, 2, 2, context=False, drop_path=0.5), torch.zeros(400, 1, 1, 4, 8)
    torch.manual_seed(0)
    added = block.train().added(x, torch.ones_like(x)).flatten(1)
    assert set(added.flatten().tolist()) == {0.0, 2.0}
    assert (added == added[:, :1]).all()
    assert 150 < (added[:, 0] == 0).sum() < 250
    assert (block.eval().added(x, torch.ones_like(x)) == 1).all()


def test_drop_path_grows_on_the_way_down_and_falls_on_the_way_up():
    model = build("swinlstm-d:published", in_steps=1, out_steps=1, width=32)
    rates = [[block.drop_path for block in cell.blocks] for cell in (*model.down, *model.up)]
    assert [len(cell) for cell in rates] == [2, 6, 2, 6]
    assert rates[0][0] == rates[3][-1] == 0
    assert rates[1][-1] == rates[2][0] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("model", "options", "fault"),
    [
        ("swinlstm-b", {"heads": (3,)}, "divide the width of their cell: 128 / 3"),
        ("swinlstm-b", {"depths": (2, 2)}, ">= 1 for each cell"),
        ("swinlstm-b", {"patch": 0}, "patch and window must be >= 1"),
        ("swinlstm-b", {"drop_path": 1.0}, r"drop_path in \[0, 1\)"),
        ("swinlstm-d", {"depths_up": (2,)}, "depths_up names as many cells"),
        ("swinlstm-d", {"window": (4, 4)}, "window one more"),
        ("swinlstm-d", {"heads_up": (8, 3)}, "256 / 3"),
    ],
)
def test_options_that_do_not_fit_are_refused(model, options, fault):
    with pytest.raises(ValueError, match=fault):
        build(model, in_steps=1, out_steps=1, **options)
