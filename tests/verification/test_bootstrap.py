"""Intervals of differences, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nowcast.verification.bootstrap import differences
from tests.operations.test_comparison import sums


@pytest.mark.parametrize(("level", "low", "high"), [(0.95, 0.25, 0.5), (0.4, 0.375, 0.375)])
def test_two_blocks_by_hand(level: float, low: float, high: float) -> None:
    """CSI 0.25 better in the one, 0.5 in the other: a draw is one of them twice, a quarter each, or both."""
    first, second = sums(np.array([[25], [25]])), sums(np.array([[50], [75]]))
    found = differences(first, second, ["csi"], blocks=np.arange(2), over=["lead_time"], level=level)["csi"]
    assert found.isel(threshold=0).values.tolist() == pytest.approx([0.375, low, high])
