"""PhyDNet: moments of filters, the first step, how truth is fed, which options it refuses."""

from __future__ import annotations

import pytest
import torch

from nowcast.models import build
from nowcast.models.phydnet import LSTMCell, PhyCell, moment_loss, moments


def test_moments_by_hand():
    """The central difference is a first derivative along columns; it has a third moment too, of 1/6 * 2 / 2."""
    filters = torch.zeros(5, 5)
    filters[2, 1], filters[2, 3] = -0.5, 0.5
    found = moments(filters)
    assert found[0].tolist() == pytest.approx([0, 1, 0, 1 / 6, 0])
    assert found[1:].abs().max() == 0


def test_moment_loss_is_zero_for_the_derivatives_themselves():
    """Filters with one moment each solve a linear system; doubling one of them costs 1 / 9², per channel."""
    side, count = 3, 9
    basis = torch.eye(count, dtype=torch.float64).view(count, side, side)
    filters = torch.linalg.inv(moments(basis).view(count, count)).view(count, 1, side, side).repeat(1, 2, 1, 1)
    assert moment_loss(filters).item() == pytest.approx(0, abs=1e-12)
    filters[4] *= 2
    assert moment_loss(filters).item() == pytest.approx(2 / count**2)


def test_first_step_is_that_of_zero_states():
    x, zeros = torch.rand(2, 4, 5, 6), torch.zeros(2, 4, 5, 6)
    cell = PhyCell(4, kernel=3)
    torch.testing.assert_close(cell(x, None), cell(x, zeros))
    lstm = LSTMCell(4, 4, kernel=3)
    torch.testing.assert_close(lstm(x, None), lstm(x, (zeros, zeros)))


def test_a_batch_is_fed_the_truth_as_a_whole():
    model = build("phydnet:debug", in_steps=3, out_steps=5)
    drawn = torch.stack([model.fed(4, 0.2) for _ in range(50)])
    assert drawn[..., :3].all()
    assert (drawn[..., 3:].float().mean((1, 2)) % 1 == 0).all()
    assert 0.2 < drawn[..., 3:].float().mean() < 0.6
    assert not model.fed(4, 1 / 3)[:, 3:].any()


def test_forecast_lies_between_0_and_1():
    model = build("phydnet:debug", in_steps=2, out_steps=2).eval()
    with torch.inference_mode():
        future = model(9 * torch.randn(1, 2, 1, 16, 16))
    assert 0 <= future.min() <= future.max() <= 1


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"base_width": 48}, "multiple of 32"),
        ({"widths": (16, 32)}, "twice base_width, 64"),
        ({"physics_kernel": 4}, "odd"),
        ({"patch": 8}, "2 or 4"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        build("phydnet", in_steps=1, out_steps=1, **options)
