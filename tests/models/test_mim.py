"""Numbers worked by hand for MIM's two cells, the first step without zeros, and the options of MIM."""

from __future__ import annotations

import math

import pytest
import torch

from nowcast.models import build
from nowcast.models.mim import MIMBlock, PeepholeCell
from tests.models.test_models import frames, smallest
from tests.models.test_predrnn import pixel, sigmoid


def set_kernels(module: torch.nn.Module, values: dict[str, list[float]]) -> None:
    with torch.no_grad():
        for name, weights in values.items():
            getattr(module, name)[0].weight.copy_(torch.tensor(weights).reshape(-1, 1, 1, 1))


def test_peephole_cell_by_hand():
    cell, x, h, c = PeepholeCell(1, kernel=1), 0.7, -0.3, 0.9
    set_kernels(cell, {"conv_x": [0.1, 0.2, 0.3, 0.4], "conv_h": [-0.5, 0.6, 0.7, -0.8]})
    with torch.no_grad():
        cell.peep_c.copy_(torch.tensor([0.35, -0.45]).reshape(2, 1, 1))
        cell.peep_o.fill_(0.55)
    add, candidate = sigmoid(0.07 + 0.15 + 0.35 * c), math.tanh(0.14 - 0.18)
    new_c = sigmoid(0.21 - 0.21 - 0.45 * c + 1) * c + add * candidate
    shown = sigmoid(0.28 + 0.24 + 0.55 * new_c) * math.tanh(new_c)
    made = cell(pixel(x), pixel(h), pixel(c))
    assert [tensor.item() for tensor in made] == pytest.approx([shown, new_c], abs=1e-6)


def test_block_by_hand():
    block, x, h, c, m = MIMBlock(1, kernel=1), 0.7, -0.3, 0.9, 0.4
    set_kernels(block, {"conv_x": [0.1, 0.2, 0.3, 0.4], "conv_t": [0.5, 0.6, -0.7], "conv_s": [0.8, -0.9, 0.15, 0.25]})
    with torch.no_grad():
        block.conv_last.weight.copy_(torch.tensor([0.8, 0.4]).reshape(1, 2, 1, 1))
        kept, expected_s = block.stationary(pixel(0.2), pixel(c), pixel(-0.6))
        (h1, c1, s1), m1 = block(pixel(x), pixel(0.2), (pixel(h), pixel(c), pixel(-0.6)), pixel(m))
    new_c = kept.item() + sigmoid(0.07 - 0.15) * math.tanh(0.14 - 0.18)
    new_m = sigmoid(0.21 + 0.06 + 1) * m + sigmoid(0.07 + 0.32) * math.tanh(0.14 - 0.36)
    shown = sigmoid(0.28 + 0.21 + 0.1) * math.tanh(0.8 * new_c + 0.4 * new_m)
    assert (h1.item(), c1.item(), m1.item()) == pytest.approx((shown, new_c, new_m), abs=1e-6)
    assert torch.equal(s1, expected_s)


@pytest.mark.parametrize(("norm", "grid"), [(False, None), (True, None), (True, (5, 4))])
def test_none_stands_for_zeros(norm, grid):
    block, x = MIMBlock(3, kernel=3, norm=norm, grid=grid), frames(2, 3, 5, 4)
    with torch.no_grad():
        for parameter in block.parameters():  # shifts other than 0
            parameter.add_(0.1)
    state, zeros = (None, None, None), torch.zeros_like(x)
    (h, c, s), m = block(x, None, None, x)
    (h0, c0, s0), m0 = block(x, zeros, (zeros,) * 3, x)
    torch.testing.assert_close((h, c, m), (h0, c0, m0))
    torch.testing.assert_close(block(x, x, (h, c, s), m), block(x, x, (h0, c0, s0), m0))
    assert block(x, None, state, x)[1].shape == x.shape


def test_differences_begin_with_the_second_frame():
    model, seen = smallest("mim"), []
    model.nonstationary[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        _, state = model.step(model.embed(frames(1, 1, 8, 8)), None)
        first = state[0][0]
        _, state = model.step(model.embed(frames(1, 1, 8, 8) / 2), state)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], state[0][0] - first)


@pytest.mark.parametrize("detached", [False, True])
def test_gradient_through_the_state_of_mim_s_can_be_stopped(detached):
    model = build("mim:debug", in_steps=2, out_steps=2, detached=detached)
    _, state = model.step(model.embed(frames(1, 1, 8, 8)), None)
    _, state = model.step(model.embed(frames(1, 1, 8, 8)), state)
    assert state[2][0][2].requires_grad is not detached


def test_peepholes_per_element_need_a_grid():
    free, bound = (build("mim:debug", in_steps=2, out_steps=1, grid=grid) for grid in (None, (16, 12)))
    assert free.blocks[0].stationary.peep_c.shape == (16, 1, 1)
    assert bound.blocks[0].stationary.peep_c.shape == (16, 8, 6)
    assert bound.eval()(frames(1, 2, 1, 21, 30)).shape == (1, 1, 1, 21, 30)


@pytest.mark.parametrize(
    ("options", "fault"), [({"widths": (8, 16)}, "the memory passes through"), ({"grid": (18, 16)}, "divide by patch")]
)
def test_options_that_do_not_fit_are_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        build("mim", in_steps=1, out_steps=1, **options)
