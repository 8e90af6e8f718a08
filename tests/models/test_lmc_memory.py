"""LMC-Memory: addressing, the two phases, clips of any length, options."""

from __future__ import annotations

import pytest
import torch

from nowcast.models import build
from nowcast.models.lmc_memory import FrameConv, LSTMCell, Memory, MotionEncoder


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) - 0.5


def tiny(**options: object) -> torch.nn.Module:
    torch.manual_seed(1)
    return build("lmc-memory:debug", **({"in_steps": 3, "out_steps": 2} | options))


def test_recalled_are_slots_by_the_likeness_of_their_direction():
    """Cosines with the slots are 1 and 0, whatever the lengths; what is recalled has the slots' own lengths."""
    slots = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    query = torch.tensor([0.0, 7.0]).view(1, 2, 1, 1)
    share = torch.e / (torch.e + 1)
    expected = torch.tensor([3 * (1 - share), 5 * share]).view(1, 2, 1, 1)
    torch.testing.assert_close(Memory.recalled(query, slots), expected)


def test_only_the_long_clip_changes_the_slots():
    memory = Memory(1, 8, 5)
    stored, found = memory.both(noise(1, 3, 1, 16, 16), noise(1, 5, 1, 16, 16)).chunk(2)
    assert torch.autograd.grad(found.sum(), memory.slots, retain_graph=True, allow_unused=True)[0].abs().sum() == 0
    assert torch.autograd.grad(stored.sum(), memory.slots, retain_graph=True)[0].abs().sum() > 0
    encoders = [next(encoder.parameters()) for encoder in (memory.context, memory.matching)]
    of_stored = torch.autograd.grad(stored.sum(), encoders, retain_graph=True, allow_unused=True)
    assert [grad.abs().sum() > 0 for grad in of_stored] == [True, False]
    of_found = torch.autograd.grad(found.sum(), encoders, allow_unused=True)
    assert [grad.abs().sum() > 0 for grad in of_found] == [False, True]


def test_encoders_start_as_copies():
    memory = Memory(1, 8, 5)
    torch.testing.assert_close(memory.context.state_dict(), memory.matching.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 20])
def test_motion_of_clips_of_any_length(steps):
    encoder = MotionEncoder(2, 8)
    assert encoder(noise(1, steps, 2, 32, 48)).shape == (1, 32, 2, 3)


def test_a_still_clip_of_any_length_has_one_motion():
    encoder = MotionEncoder(1, 8)
    still = noise(1, 1, 1, 16, 16)
    torch.testing.assert_close(encoder(still.expand(-1, 2, -1, -1, -1)), encoder(still))


def test_zero_state_is_left_out_without_a_difference():
    cell, x = LSTMCell(8), noise(2, 8, 5, 6)
    torch.testing.assert_close(cell(x, None), cell(x, (torch.zeros_like(x),) * 2))


def test_lstm_gates_are_input_candidate_forget_output():
    cell = LSTMCell(8)
    with torch.no_grad():
        cell.weight.zero_()
        cell.bias_h.zero_()
        cell.bias_x.copy_(torch.tensor([0.0, 1.0, 2.0, -1.0]).repeat_interleave(8))
    h, c = cell(torch.zeros(1, 8, 1, 1), (torch.zeros(1, 8, 1, 1), torch.ones(1, 8, 1, 1)))
    expected = torch.tensor(2.0).sigmoid() + 0.5 * torch.tensor(1.0).tanh()
    assert c[0, 0, 0, 0].item() == pytest.approx(expected.item())
    assert h[0, 0, 0, 0].item() == pytest.approx((torch.tensor(-1.0).sigmoid() * expected.tanh()).item())


def test_loss_is_that_of_both_phases():
    model, past, future = tiny().eval(), noise(2, 3, 1, 16, 16), noise(2, 2, 1, 16, 16)
    clip = torch.cat([past, future], dim=1)
    expected = torch.zeros(())
    for query in (model.memory.context(clip), model.memory.matching(past)):
        recalled = model.memory.embedder(model.memory.recalled(query, model.memory.slots))
        error = model.told(model.watched(past), recalled, 2) - future
        expected = expected + error.abs().mean() + error.square().mean()
    torch.testing.assert_close(model.training_loss(past, future, 0.5), expected)


def test_masked_pixels_do_not_count():
    model, past, future = tiny().eval(), noise(2, 3, 1, 16, 16), noise(2, 2, 1, 16, 16)
    mask = (future > 0).float()
    spoilt = torch.where(mask > 0, future, 9.0)
    losses = []
    for truth in (future, spoilt):
        model.long_steps = None
        made = model(past)
        error = (made - truth).abs() + (made - truth).square()
        losses.append((error * mask).sum() / mask.sum())
    torch.testing.assert_close(losses[0], losses[1])
    zero = model.training_loss(past, future, 0.5, torch.zeros_like(future))
    assert zero == 0


def test_long_clips_lie_anywhere_in_the_sequence(monkeypatch):
    model, seen = tiny(long_steps=3), set()
    past, future = torch.zeros(1, 3, 1, 16, 16), torch.zeros(1, 2, 1, 16, 16)
    past += torch.arange(3).view(1, 3, 1, 1, 1)
    future += torch.arange(3, 5).view(1, 2, 1, 1, 1)
    both = model.memory.both
    monkeypatch.setattr(
        model.memory, "both", lambda short, long: seen.add((long.shape[1], int(long[0, 0].mean()))) or both(short, long)
    )
    for _ in range(30):
        model.training_loss(past, future, 0.5)
    assert seen == {(3, 0), (3, 1), (3, 2)}


def test_warm_up_forecasts_ten_frames_from_all_of_the_clip(monkeypatch):
    model, seen = tiny(out_steps=12, long_steps=4), []
    both = model.memory.both
    monkeypatch.setattr(model.memory, "both", lambda short, long: seen.append(long.shape[1]) or both(short, long))
    past, future = noise(1, 3, 1, 16, 16), noise(1, 12, 1, 16, 16)
    model.training_loss(past, future, 0.0)
    model.training_loss(past, future, 0.5)
    assert seen == [13, 4]


def test_frames_stay_between_zero_and_one_where_asked():
    model = tiny(sigmoid=True).eval()
    frames = model(9 * noise(1, 3, 1, 16, 16))
    assert frames.min() > 0
    assert frames.max() < 1


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"width": 12}, "multiple of 8"),
        ({"slots": 0}, "slots >= 1"),
        ({"long_steps": 1}, "long_steps must be >= 2"),
        ({"warm_up": 1.0}, r"warm_up in \[0, 1\)"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        tiny(**options)


def test_convolution_of_frames_is_the_three_dimensional_one():
    ours, clip = FrameConv(2, 5), noise(2, 4, 2, 6, 7)
    kernel = ours.weight.unflatten(1, (3, 2)).transpose(1, 2)
    expected = torch.nn.functional.conv3d(clip.transpose(1, 2), kernel, ours.bias, padding=1).transpose(1, 2)
    torch.testing.assert_close(ours(clip), expected)
