"""Blocks and options of SA-ConvLSTM."""

from __future__ import annotations

import pytest
import torch

from nowcast.models import build
from nowcast.models.sa_convlstm import AttentionMemory, SACell, TimeConv


def fields(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(4)) - 0.5


def attention_memory(**options: object) -> AttentionMemory:
    torch.manual_seed(0)
    settings = {"keys": 2, "values": 4, "mixed": 3, "kernel": 3, "scaled": False}
    return AttentionMemory(5, **(settings | options))


@pytest.mark.parametrize(("scaled", "scale"), [(False, 1.0), (True, 2**-0.5)])
def test_attention_is_of_all_positions_to_all(scaled, scale):
    """Queries and keys are narrower than values."""
    query, key, value = fields(2, 2, 3, 6), 2 * fields(2, 2, 3, 6) + 1, fields(2, 4, 3, 6)
    scores = scale * query.flatten(2).mT @ key.flatten(2)
    expected = (value.flatten(2) @ scores.softmax(-1).mT).view_as(value)
    torch.testing.assert_close(attention_memory(scaled=scaled).attend(query, key, value), expected)


@pytest.mark.parametrize("projected", [False, True])
def test_none_stands_for_a_memory_of_zeros(projected):
    block, h = attention_memory(projected=projected), fields(2, 5, 4, 6)
    torch.testing.assert_close(block(h, None), block(h, torch.zeros_like(h)))


def test_none_stands_for_a_state_of_zeros():
    cell = SACell(3, 5, kernel=3, memory=attention_memory(), peepholes=(4, 6))
    torch.nn.init.normal_(cell.peepholes)
    x, zeros = fields(2, 3, 4, 6), torch.zeros(2, 5, 4, 6)
    torch.testing.assert_close(cell(x, None), cell(x, (zeros, zeros, zeros)))


def test_peepholes_see_the_old_cell_state_and_the_output_gate_the_new():
    cell = SACell(1, 1, kernel=1, memory=torch.nn.Identity(), peepholes=(1, 1))
    with torch.no_grad():
        cell.gates.weight.zero_()
        cell.gates.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
        cell.peepholes.copy_(torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1))
    h, c = cell._update(cell.gates(torch.zeros(1, 2, 1, 1)), torch.full((1, 1, 1, 1), 0.5))
    new = torch.sigmoid(torch.tensor(1.2)) * 0.5 + torch.sigmoid(torch.tensor(0.6)) * torch.tanh(torch.tensor(0.3))
    torch.testing.assert_close(c.squeeze(), new)
    torch.testing.assert_close(h.squeeze(), torch.sigmoid(0.4 + 3 * new) * new.tanh())


@pytest.mark.parametrize("options", [{"context": True}, {"expression": True}, {"context": True, "expression": True}])
def test_blocks_of_cms_lstm_plug_in(options):
    """They learn, on a grid that is not square, and forecast as well with one frame as with more."""
    model = build("sa-convlstm:debug", in_steps=2, out_steps=2, **options)
    model.training_loss(fields(2, 2, 1, 18, 11), fields(2, 2, 1, 18, 11), 0.5).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())
    assert model.eval()(fields(1, 2, 1, 18, 11)).shape == (1, 2, 1, 18, 11)


def test_time_convolution_is_3d():
    conv, clip = TimeConv(4, 2), fields(2, 4, 5, 6, 7)
    torch.nn.init.normal_(conv.bias)
    kernel = conv.taps.weight.unflatten(0, (3, 2)).movedim(0, 2)
    expected = torch.nn.functional.conv3d(clip, kernel, conv.bias, padding=1)
    torch.testing.assert_close(conv(clip), expected.transpose(1, 2))


def test_sequence_forecasts_longer_by_reading_its_own():
    """Five frames of three at a time; one at a time is what a network of single frames does, too."""
    model = build("sa-convlstm-seq:debug", in_steps=3, out_steps=5).eval()
    past = fields(1, 3, 1, 8, 8) + 0.5
    with torch.inference_mode():
        first = model.block(past).sigmoid()
        second = model.block(first).sigmoid()
        torch.testing.assert_close(model(past), torch.cat([first, second[:, :2]], dim=1))
        model.single = True
        single = model.block(past).sigmoid()
        torch.testing.assert_close(single, first[:, 2:])
        following = model.block(torch.cat([past[:, 1:], single], dim=1)).sigmoid()
        torch.testing.assert_close(model(past)[:, :2], torch.cat([single, following], dim=1))


def test_sequence_loss_is_cross_entropy_where_measured():
    model = build("sa-convlstm-seq:debug", in_steps=2, out_steps=2)
    past, future, mask = fields(1, 2, 1, 6, 6) + 0.5, fields(1, 2, 1, 6, 6) + 0.5, torch.ones(1, 2, 1, 6, 6)
    mask[..., 3:] = 0
    made = model(past)
    expected = torch.nn.functional.binary_cross_entropy(made[..., :3], future[..., :3])
    future[..., 3:] = 9
    torch.testing.assert_close(model.training_loss(past, future, 0.0, mask), expected)


@pytest.mark.parametrize(
    ("name", "options", "fault"),
    [
        ("sa-convlstm", {"attention": 0}, "attention must be >= 1"),
        ("sa-convlstm", {"widths": ()}, "widths names the channels"),
        ("sa-convlstm-seq", {"activation": "gelu"}, "known: tanh, relu, leaky-relu, sigmoid"),
        ("sa-convlstm-seq", {"layers": 0}, "layers and attention must be >= 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options, fault):
    with pytest.raises(ValueError, match=fault):
        build(name, in_steps=1, out_steps=1, **options)
