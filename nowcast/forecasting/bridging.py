"""Fields between two frames, along the motion from one to the other."""

from __future__ import annotations

import numpy as np

from nowcast.core.units import get_quantity
from nowcast.models.extrapolation import advect, motion


def bridge(before: np.ndarray, after: np.ndarray, share: float, *, quantity: str) -> np.ndarray:
    """Make the field at a time between two frames.

    Optical flow runs both ways; the frame before is carried forward and the one after backward, each for its part of
    the way (semi-Lagrangian), and the two are averaged with weights by time on the quantity's own scale.

    Args:
        before: (y, x) physical values, NaN = no data.
        after: The same at the later time.
        share: Part of the time between them that has passed, 0..1.
        quantity: Name of the quantity.

    Returns:
        (y, x) float32; NaN where neither has data, or neither reaches.
    """
    scaling = get_quantity(quantity).scaling
    first, last = (scaling.encode(field, clip=False) for field in (before, after))
    forth = advect(first, -motion(np.stack([last, first])) * np.float32(share), steps=1)[0]
    back = advect(last, -motion(np.stack([first, last])) * np.float32(1 - share), steps=1)[0]
    both = (1 - np.float32(share)) * forth + np.float32(share) * back
    field = np.where(np.isnan(forth), back, np.where(np.isnan(back), forth, both))
    seen = np.isfinite(before) | np.isfinite(after)  # what moves out of a radar's view is not seen there
    made: np.ndarray = np.where(seen, scaling.decode(field, clip=False), np.float32(np.nan))
    return made
