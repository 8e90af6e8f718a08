"""TrajGRU: where it looks, how it weighs errors, which options it refuses."""

from __future__ import annotations

import pytest
import torch

from nowcast.models import build
from nowcast.models.trajgru import TrajGRUCell, warped


def ramp(height: int, width: int) -> torch.Tensor:
    """The value of a pixel is 10 * row + column + 1."""
    return (10.0 * torch.arange(height)[:, None] + torch.arange(width) + 1)[None, None]


def flow(*links: tuple[float, float], height: int, width: int) -> torch.Tensor:
    return torch.tensor(links).reshape(1, -1, 1, 1).expand(1, 2 * len(links), height, width)


def test_warping_looks_upstream_per_link():
    """A flow to the right brings what was at the left; half a pixel down brings a mean; outside is zero."""
    found = warped(ramp(3, 4), flow((1, 0), (0, 0.5), height=3, width=4))
    assert found.shape == (1, 1, 2, 3, 4)
    torch.testing.assert_close(found[0, 0, 0, 1], torch.tensor([0.0, 11, 12, 13]), rtol=0, atol=1e-4)
    torch.testing.assert_close(found[0, 0, 1, 1], torch.tensor([6.0, 7, 8, 9]), rtol=0, atol=1e-4)
    torch.testing.assert_close(found[0, 0, 1, 0], torch.tensor([0.5, 1, 1.5, 2]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 1), (5, 3)])
def test_no_flow_leaves_a_field_alone_unless_asked_for(height, width):
    field, still = ramp(height, width), flow((0, 0), height=height, width=width)
    torch.testing.assert_close(warped(field, still)[:, :, 0], field)
    assert not torch.allclose(warped(field, still, align_corners=False)[:, :, 0], field)


def test_first_step_is_that_of_a_state_of_zeros():
    cell, x = TrajGRUCell(3, 4, links=2), torch.rand(2, 3, 5, 6)
    torch.testing.assert_close(cell(x, ()), cell(x, (torch.zeros(2, 4, 5, 6),)))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"widths": (8, 8)}, "one value per stage"),
        ({"forecaster_links": (3,)}, "one value per stage"),
        ({"links": (3, 0, 2)}, ">= 1"),
        ({"flow_kernel": 4}, "odd"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, fault):
    with pytest.raises(ValueError, match=fault):
        build("trajgru:hko7", in_steps=1, out_steps=1, **options)
