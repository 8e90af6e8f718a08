"""What is written past zarr is what zarr would have written, and is read as zarr reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from nowcast.core.errors import StoreError
from nowcast.store.chunk_io import Compressed, Frames

FILL = {"uint8": 255, "int16": -32768, "float32": float("nan")}


@dataclass(frozen=True)
class Layout:
    """Frames in chunks of ``steps``, cut into bands of ``height`` rows; ``shard`` counts chunks in time and rows."""

    frames: int
    shape: tuple[int, int]
    steps: int
    height: int
    shard: tuple[int, int] | None
    dtype: str

    def make(self) -> zarr.Array:
        chunks = (self.steps, self.height, self.shape[1])
        shards = (self.steps * self.shard[0], self.height * self.shard[1], self.shape[1]) if self.shard else None
        return zarr.create_array(
            zarr.storage.MemoryStore(),
            name="rain",
            shape=(self.frames, *self.shape),
            chunks=chunks,
            shards=shards,
            dtype=self.dtype,
            fill_value=FILL[self.dtype],
            compressors=ZstdCodec(level=3),
        )

    def empty(self) -> np.ndarray:
        return np.full((self.frames, *self.shape), FILL[self.dtype], self.dtype)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    rows = draw(st.integers(1, 9))
    height = draw(st.integers(1, rows))
    shard = draw(st.none() | st.tuples(st.integers(1, 4), st.integers(1, -(-rows // height))))
    return Layout(
        draw(st.integers(1, 14)),
        (rows, draw(st.integers(1, 5))),
        draw(st.integers(1, 4)),
        height,
        shard,
        draw(st.sampled_from(list(FILL))),
    )


def rain(layout: Layout, count: int, seed: int) -> np.ndarray:
    """Random codes, many of them the fill value."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 100, (count, *layout.shape)).astype(layout.dtype)
    codes[rng.random(codes.shape) < 0.3] = FILL[layout.dtype]
    codes[rng.random(count) < 0.2] = FILL[layout.dtype]
    return codes


def parts(data: st.DataObject, layout: Layout, seed: int) -> list[tuple[int, np.ndarray]]:
    """Pieces of the array in ascending order, adjacent or apart."""
    borders = sorted(data.draw(st.sets(st.integers(0, layout.frames), min_size=2)))
    kept = data.draw(st.lists(st.booleans(), min_size=len(borders) - 1, max_size=len(borders) - 1))
    return [
        (first, rain(layout, last - first, seed + first))
        for first, last, keep in zip(borders, borders[1:], kept, strict=False)
        if keep
    ]


@settings(max_examples=60)
@given(layouts(), st.data(), st.integers(0, 2**20))
def test_zarr_reads_what_frames_wrote(layout: Layout, data: st.DataObject, seed: int) -> None:
    array, expected = layout.make(), layout.empty()
    frames = Frames(array)
    assert frames.plain
    for turn in range(data.draw(st.integers(1, 3))):
        written = parts(data, layout, seed + 100 * turn)
        frames.write(written)
        for start, codes in written:
            expected[start : start + len(codes)] = codes
        np.testing.assert_array_equal(array[:], expected)
        np.testing.assert_array_equal(frames.read(range(layout.frames)), expected)


@settings(max_examples=60)
@given(layouts(), st.data(), st.integers(0, 2**20))
def test_frames_read_what_zarr_wrote(layout: Layout, data: st.DataObject, seed: int) -> None:
    array = layout.make()
    for start, codes in parts(data, layout, seed):
        array[start : start + len(codes)] = codes
    expected, frames = np.asarray(array[:]), Frames(array)
    for _ in range(3):
        places = sorted(data.draw(st.sets(st.integers(0, layout.frames - 1), min_size=1)))
        top, bottom = sorted(data.draw(st.tuples(*[st.integers(0, layout.shape[0])] * 2)))
        found = frames.read(places, rows=slice(top, bottom))
        np.testing.assert_array_equal(found, expected[places, top:bottom])
        assert found.dtype == array.dtype
        out = np.empty((len(places) + 2, bottom - top, layout.shape[1]), layout.dtype)
        frames.read(np.asarray(places), rows=slice(top, bottom), out=out[1:-1])
        np.testing.assert_array_equal(out[1:-1], expected[places, top:bottom])


@settings(max_examples=60)
@given(layouts(), st.data(), st.integers(0, 2**20))
def test_compressed_frames_go_into_any_layout(layout: Layout, data: st.DataObject, seed: int) -> None:
    array, expected = layout.make(), layout.empty()
    height, level = data.draw(st.integers(1, layout.shape[0])), data.draw(st.sampled_from([1, 3]))
    for start, codes in parts(data, layout, seed):
        ready = Compressed.of(codes, height=height, fill=FILL[layout.dtype], level=level)
        np.testing.assert_array_equal(ready, codes)
        assert len(ready) == len(codes)
        picked = [0, len(codes) - 1]
        np.testing.assert_array_equal(ready[picked], codes[picked])
        Frames(array).write([(start, ready)])
        expected[start : start + len(codes)] = codes
    np.testing.assert_array_equal(array[:], expected)


def test_what_is_compressed_as_the_store_is_goes_there_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(frames=4, shape=(6, 5), steps=1, height=4, shard=None, dtype="int16")
    array, codes = layout.make(), rain(layout, 4, seed=1)
    ready = Compressed.of(codes, height=4, fill=-32768, level=3)
    monkeypatch.setattr(Compressed, "__array__", lambda *_, **__: pytest.fail("decompressed"))
    Frames(array).write([(0, ready)])
    np.testing.assert_array_equal(array[:], codes)
    stored = [
        sync(array.store.get(f"rain/c/{frame}/{band}/0", default_buffer_prototype())).to_bytes()
        for frame in range(4)
        for band in range(2)
    ]
    assert stored == [band for frame in ready.frames for band in frame]
    assert ready.nbytes == sum(map(len, stored))


SHARDED = Layout(frames=10, shape=(6, 4), steps=2, height=3, shard=(2, 2), dtype="uint8")


def test_what_was_never_written_is_no_data() -> None:
    array = SHARDED.make()
    frames = Frames(array)
    assert (frames.read(range(10)) == 255).all()
    frames.write([(4, np.zeros((2, 6, 4), np.uint8))])  # the first half of the second shard
    assert (frames.read([4, 5]) == 0).all()
    assert (frames.read([3, 6, 7, 9]) == 255).all()


@pytest.mark.parametrize("through_zarr", [True, False])
def test_a_damaged_index_is_noticed(through_zarr: bool) -> None:
    """By both, as both take and write the checksum of the index."""
    array, codes = SHARDED.make(), np.zeros((4, 6, 4), np.uint8)
    if through_zarr:
        array[:4] = codes
    else:
        Frames(array).write([(0, codes)])
    whole = sync(array.store.get("rain/c/0/0/0", default_buffer_prototype())).to_bytes()
    damaged = whole[:-10] + bytes([whole[-10] ^ 1]) + whole[-9:]
    sync(array.store.set("rain/c/0/0/0", default_buffer_prototype().buffer.from_bytes(damaged)))
    with pytest.raises(StoreError, match="rain/c/0/0/0: its index is damaged"):
        Frames(array).read([0])
    with pytest.raises(ValueError, match="checksum"):
        array[0]


def test_pieces_of_one_object_are_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips that share a shard must not each unpack and pack it again."""
    array = SHARDED.make()
    monkeypatch.setattr(zarr.Array, "__setitem__", lambda *_: pytest.fail("through zarr"))
    Frames(array).write([(first, np.full((2, 6, 4), first, np.uint8)) for first in range(0, 10, 2)])
    assert array[:, 0, 0].tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]


@pytest.mark.parametrize(
    "serializer",
    [
        ShardingCodec(chunk_shape=(2, 3, 4), codecs=[BytesCodec(), ZstdCodec()], index_location="start"),
        ShardingCodec(chunk_shape=(2, 3, 4), codecs=[BytesCodec(), ZstdCodec()], index_codecs=[BytesCodec()]),
        ShardingCodec(chunk_shape=(2, 3, 2), codecs=[BytesCodec(), ZstdCodec()]),
        ShardingCodec(chunk_shape=(2, 3, 4), codecs=[BytesCodec(), GzipCodec()]),
        ShardingCodec(chunk_shape=(2, 3, 4), codecs=[BytesCodec(), ZstdCodec(), Crc32cCodec()]),
    ],
)
def test_another_layout_is_left_to_zarr(serializer: ShardingCodec) -> None:
    array = zarr.create_array(
        zarr.storage.MemoryStore(),
        name="rain",
        shape=(9, 6, 4),
        chunks=(4, 6, 4),
        dtype="uint8",
        fill_value=255,
        serializer=serializer,
        compressors=None,
    )
    frames, codes = Frames(array), np.arange(6 * 24, dtype=np.uint8).reshape(6, 6, 4)
    assert not frames.plain
    frames.write([(1, codes)])
    np.testing.assert_array_equal(array[1:7], codes)
    np.testing.assert_array_equal(frames.read([2, 6], rows=slice(2, 5)), codes[[1, 5], 2:5])
