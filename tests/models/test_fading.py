"""How fast scales fade."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nowcast.models.fading import Fading, _weights, scales


def weights(first: float, second: float, steps: int) -> list[tuple[float, float]]:
    correlations = torch.tensor([first, second], dtype=torch.float64)[:, None, None, None, None]
    return [(newest.item(), before.item()) for newest, before in _weights(*correlations, steps)]


def test_scales_add_up_to_the_field() -> None:
    field = torch.rand(2, 3, 70, 45)
    parts = scales(field, 5)
    assert parts.shape == (2, 5, 3, 70, 45)
    torch.testing.assert_close(parts.sum(1), field)


def test_weights_by_hand() -> None:
    """Correlations 0.8 and 0.7: of the newest 0.8 x 0.3 / 0.36, of the one before 0.06 / 0.36."""
    (a, b), (c, d) = weights(0.8, 0.7, 2)
    assert (a, b) == pytest.approx((0.24 / 0.36, 0.06 / 0.36))
    assert (c, d) == pytest.approx((a * a + b, a * b))


def test_a_first_order_model_fades_by_its_correlation() -> None:
    found = weights(0.9, 0.81, 5)
    assert found == [(pytest.approx(0.9**lead), pytest.approx(0, abs=1e-12)) for lead in range(1, 6)]


@settings(max_examples=100, deadline=None)
@given(st.floats(0.0, 0.9995), st.floats(0, 1))
def test_whatever_the_correlations_nothing_grows_for_ever(first: float, share: float) -> None:
    lowest = 2 * first**2 - 1 + 1e-3
    found = weights(first, lowest + share * max(first - lowest, 0), 200)
    assert np.isfinite(found).all() and np.abs(found).max() < 40


def test_what_stays_the_same_lasts_and_what_changes_fades() -> None:
    generator = torch.Generator().manual_seed(0)
    still = torch.rand(1, 1, 128, 256, generator=generator).expand(1, 3, 128, 256).clone()
    still[..., 128:] = torch.rand(1, 3, 128, 128, generator=generator)  # new in every frame
    fading = Fading(scales(still, 3), torch.ones(1, 1, 128, 256), 4)
    (after,) = fading.after(torch.tensor([3]))
    left = after.sum(1)[0]
    torch.testing.assert_close(left[:, :32], still[0, 0, :, :32], atol=0.05, rtol=0)
    assert left[:, 224:].std() < 0.2 * still[0, 0, :, 224:].std()
    assert left[:, 224:].mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_frames_say_less(count: int) -> None:
    frames = torch.rand(2, count, 40, 50)
    left = list(Fading(scales(frames, 4), torch.ones(2, 1, 40, 50), 3).after(torch.arange(3)))
    assert len(left) == 3 and all(part.shape == (2, 4, 40, 50) and part.isfinite().all() for part in left)
    if count == 1:
        torch.testing.assert_close(left[0].sum(1), frames[:, 0], atol=2e-3, rtol=0)  # nothing tells that it fades


def test_missing_pixels_do_not_count() -> None:
    frames, known = torch.rand(1, 3, 64, 128), torch.ones(1, 1, 64, 128)
    known[..., 64:] = 0
    other = frames.clone()
    other[..., 64:] = 0.9
    first, second = (
        Fading(pair[:, None].expand(-1, 2, -1, -1, -1), known, 2).weights_2NLKhw for pair in (frames, other)
    )
    torch.testing.assert_close(first, second)
