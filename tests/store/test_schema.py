"""How frames are divided into chunks and shards, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from nowcast.store.schema import _chunks


def chunks(shape: tuple[int, int, int], *, event: int, itemsize: int = 1):
    variable = xr.Variable(("time", "y", "x"), np.empty(shape, np.uint8))
    return _chunks(variable, "time", itemsize, event)


@pytest.mark.parametrize(
    ("shape", "event", "itemsize", "expected"),
    [
        # a live feed: one frame a chunk, one chunk an object
        ((1, 765, 700), 1, 2, ((1, 765, 700), None)),
        # 2 Mi pixels a chunk: 3,000 x 2,000 are cut into three bands
        ((1, 3000, 2000), 1, 2, ((1, 1000, 2000), None)),
        # events of 20 frames of 4 KiB are 80 KiB: one chunk each, 102 of them in an object of 8 MiB
        ((20, 64, 64), 20, 1, ((20, 64, 64), (2040, 64, 64))),
        # the same in four bytes are 320 KiB, too many for one chunk: 4 frames of 16 KiB, 25 events an object
        ((20, 64, 64), 20, 4, ((4, 64, 64), (500, 64, 64))),
        # 49 frames of 144 KiB: one frame a chunk, one event an object
        ((49, 384, 384), 49, 1, ((1, 384, 384), (49, 384, 384))),
        # 10 frames of 6 MB are more than an object: one frame each, in three bands
        ((10, 3000, 2000), 10, 1, ((1, 1000, 2000), (1, 3000, 2000))),
    ],
)
def test_chunks_and_shards(shape: tuple[int, int, int], event: int, itemsize: int, expected) -> None:
    assert chunks(shape, event=event, itemsize=itemsize) == expected
