"""Where MotionRNN samples a field, how its motion is renewed, and its options."""

from __future__ import annotations

import pytest
import torch

from nowcast.models import build
from nowcast.models.motionrnn import MOTION, NEIGHBOURS, MotionGRU, _move
from tests.models.test_models import frames, smallest


def one_neighbour(which: int) -> MotionGRU:
    """A MotionGRU that shows one neighbour of every pixel, as it is."""
    motion = MotionGRU(1)
    with torch.no_grad():
        motion.mix.weight.zero_()[0, which] = 1
    return motion


def warped(field: torch.Tensor, neighbour: int, down: float, right: float) -> torch.Tensor:
    motion = torch.zeros(1, MOTION, *field.shape[2:])
    motion[:, neighbour], motion[:, NEIGHBOURS + neighbour] = down, right
    with torch.no_grad():
        return one_neighbour(neighbour).warp(field, motion, torch.ones(1, NEIGHBOURS, *field.shape[2:]))


def clamped_sample(field: torch.Tensor, neighbour: int, down: float, right: float) -> torch.Tensor:
    """The released code in words: positions stop in a ring of zeros around the field, then four corners are mixed."""
    height, width = field.shape[2:]
    ringed = torch.nn.functional.pad(field[0, 0], (1, 1, 1, 1))
    made = torch.empty(height, width)
    for y in range(height):
        for x in range(width):
            row = min(max(y + 1 + neighbour // 3 - 1 + down, 0), height + 1)
            column = min(max(x + 1 + neighbour % 3 - 1 + right, 0), width + 1)
            top, left = min(int(row), height), min(int(column), width)
            corners = ringed[top : top + 2, left : left + 2]
            vertical = torch.tensor([1.0 - (row - top), row - top])
            made[y, x] = vertical @ corners @ torch.tensor([1.0 - (column - left), column - left])
    return made[None, None]


@pytest.mark.parametrize("neighbour", [0, 4, 5, 6])
@pytest.mark.parametrize(("down", "right"), [(0, 0), (0.25, -1.5), (-9, 0.5), (2.75, 30), (-0.5, -0.5)])
def test_warp_samples_where_positions_stop_in_a_ring_of_zeros(neighbour, down, right):
    for shape in [(5, 7), (1, 3), (4, 1)]:
        field = frames(1, 1, *shape)
        torch.testing.assert_close(warped(field, neighbour, down, right), clamped_sample(field, neighbour, down, right))


def test_neighbours_are_weighted():
    field, weights = torch.ones(1, 1, 3, 3), frames(1, NEIGHBOURS, 3, 3)
    motion = one_neighbour(4)
    with torch.no_grad():
        torch.testing.assert_close(motion.warp(field, torch.zeros(1, MOTION, 3, 3), weights), weights[:, 4:5])


def test_motion_by_hand():
    """The trend moves half way to the motion of before; the new motion is the transient one on top of it."""
    gates, candidate = torch.zeros(1, 2 * MOTION, 1, 1), torch.full((1, MOTION, 1, 1), 0.7)
    motion, trend = torch.full((1, MOTION, 1, 1), 2.0), torch.full((1, MOTION, 1, 1), 1.0)
    moved, renewed = _move(gates, candidate, motion, trend)
    assert renewed.unique().item() == 1.5
    assert moved.unique().item() == pytest.approx(0.5 * 2 + 0.5 * 0.6043678 + 1.5)
    first, none = _move(gates, candidate, None, None)
    torch.testing.assert_close((first, none), _move(gates, candidate, 0 * motion, 0 * trend))


def test_reset_gate_is_read_from_the_second_half_of_the_gates():
    layer, field = MotionGRU(2), frames(1, 2, 4, 4)
    state = (torch.ones(1, MOTION, 4, 4), torch.zeros(1, MOTION, 4, 4))
    with torch.no_grad():
        layer.conv_candidate.weight.fill_(1)
        layer.conv_x.bias[: 2 * MOTION] = torch.tensor([100.0, -100.0]).repeat_interleave(MOTION)
        _, (motion, _) = layer(field, state)  # all renewed, nothing of the old motion seen
        expected = layer.conv_x.bias[2 * MOTION : 3 * MOTION].tanh() + 0.5
    torch.testing.assert_close(motion, expected[None, :, None, None].expand_as(motion))


@pytest.mark.parametrize("cell", ["st-lstm", "convlstm"])
def test_either_cell_learns_on_any_grid(cell):
    model = build("motionrnn:debug", in_steps=2, out_steps=2, cell=cell)
    model.training_loss(frames(2, 2, 1, 11, 18), frames(2, 2, 1, 11, 18), 0.5).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())


def test_highway_carries_what_was_there_before_the_warping():
    model = smallest("motionrnn")
    seen = []
    model.cells[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    hidden = []
    model.cells[0].register_forward_hook(lambda _, inputs, made: hidden.append(made[0][0]))
    with torch.inference_mode():
        model.step(model.embed(frames(1, 1, 8, 8)), None)
    x, _, _, highway = seen[0]
    assert torch.equal(highway, hidden[0])
    assert not torch.equal(x, highway)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"cell": "gru"}, "Unknown cell 'gru'; known: st-lstm, convlstm"),
        ({"widths": (8, 16)}, "the motion highway passes"),
        ({"widths": (64,)}, "Motion stands between layers of 4 channels or more"),
        ({"widths": (3, 3)}, "Motion stands between layers of 4 channels or more"),
        ({"grid": (32, 32)}, "together with layer_norm"),
        ({"layer_norm": True, "grid": (12, 16)}, "twice the patch"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        build("motionrnn", in_steps=1, out_steps=1, **options)
