"""Windows never cross what they must not, hold what the store says, and are drawn as the settings say."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from nowcast.config import Moving, QualitySettings, Recipe, ScalingSettings, Span, WindowSettings
from nowcast.core import cube as cubes
from nowcast.core.errors import ConfigError
from nowcast.core.grid import Grid
from nowcast.core.units import VIL_LEVELS, Scaling, convert
from nowcast.data import loader as module
from nowcast.data.loader import Windows, WindowSampler, loader
from nowcast.data.sources import MISSING, check_apart
from nowcast.ingestion import quality
from nowcast.store import FrameStore, open_store
from tests import synthetic
from tests.sources_video import idx

SETTINGS = WindowSettings(quantity="rainfall_rate", in_steps=2, out_steps=3)
PAIRS = SETTINGS.model_copy(update={"in_steps": 1, "out_steps": 1})
GREYS = np.arange(256, dtype=np.float32) / 255


def windows(
    path: str, settings: WindowSettings = SETTINGS, *, training: bool = False, missing: bool = False, **span: object
) -> Windows:
    return Windows([Span(store=path, **span)], settings, training=training, missing=missing)  # type: ignore[arg-type]


def changed(settings: WindowSettings, **changes: object) -> WindowSettings:
    return WindowSettings.model_validate(settings.model_dump() | changes)


def frames(found: Windows) -> list[tuple[int, ...]]:
    return [tuple(source.positions(window)) for source in found.sources for window in range(source.weights.size)]


def cube_of(
    values: np.ndarray,
    *,
    name: str = "rainfall_rate",
    times: Sequence[int] | None = None,
    sequence: str | list[str] = "",
    split: list[str] | None = None,
    cadence: int | None = 300,
    **packing: object,
) -> xr.Dataset:
    """A Cube of (time, y, x) values with all labels that ingest gives it."""
    stamps = [synthetic.START + time * synthetic.STEP for time in times or range(len(values))]
    grid = Grid.regular("EPSG:28992", values.shape[1:], upper_left=(0, 400_000), pixel=(1000, 1000))
    cube = cubes.make({name: values}, stamps, grid, sequence=sequence, split=split, cadence=cadence, **packing)  # type: ignore[arg-type]
    labels = quality.measure(cube, QualitySettings())
    digests = np.asarray([cubes.digest(field) for field in cube[name].values], object)
    return quality.labelled(cube, labels).assign_coords(digest=("time", digests))


def make(path: Path, values: np.ndarray, **options: object) -> str:
    FrameStore(path).append(cube_of(np.asarray(values, np.float32), **options), message="m")  # type: ignore[arg-type]
    return str(path)


def even(*levels: float) -> np.ndarray:
    """Frames of 16 x 16 pixels, each of one value."""
    return np.broadcast_to(np.asarray(levels, np.float32)[:, None, None], (len(levels), 16, 16))


# --- which windows there are ------------------------------------------------------------------------


def test_windows_do_not_cross_a_gap(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "s", [*range(6), *range(8, 14)])
    assert frames(windows(path)) == [(0, 1, 2, 3, 4), (1, 2, 3, 4, 5), (6, 7, 8, 9, 10), (7, 8, 9, 10, 11)]


def test_windows_do_not_cross_a_sequence(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "s", range(5), sequence="a", cadence=None)
    synthetic.make_store(tmp_path / "s", range(5, 10), sequence="b", cadence=None)
    assert frames(windows(path)) == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]


def test_windows_stay_inside_their_span(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "s", range(12))
    found = windows(path, start="2010-08-26T00:10Z", end="2010-08-26T00:40Z")
    assert frames(found) == [(2, 3, 4, 5, 6), (3, 4, 5, 6, 7)]


def test_windows_start_every_few_frames_of_a_run(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "s", [*range(6), *range(8, 12)])
    assert frames(windows(path, changed(PAIRS, stride=2))) == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]


def test_a_frame_with_too_much_missing_breaks_windows(tmp_path: Path) -> None:
    values = np.array(even(1, 1, 1, 1, 1))
    values[2, 1:] = np.nan  # 15 of 16 rows, 0.9375
    path = make(tmp_path / "s", values)
    assert len(windows(path, PAIRS)) == 4
    assert frames(windows(path, changed(PAIRS, most_missing=0.9))) == [(0, 1), (3, 4)]


def test_windows_of_a_split(tmp_path: Path) -> None:
    labels, splits = list("aabbcc"), ["train"] * 2 + ["test"] * 2 + ["train"] * 2
    path = make(tmp_path / "s", even(*range(6)), sequence=labels, split=splits, cadence=None)
    assert frames(windows(path, PAIRS, split="train")) == [(0, 1), (4, 5)]
    assert frames(windows(path, PAIRS, split="test")) == [(2, 3)]
    with pytest.raises(ConfigError, match="there is no split 'valid'; its splits: test, train"):
        windows(path, PAIRS, split="valid")


def test_a_split_of_a_store_without_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no split 'train'; its splits: none"):
        windows(synthetic.make_store(tmp_path / "s", range(5)), split="train")


def test_windows_of_sequences_by_pattern(tmp_path: Path) -> None:
    labels = ["train/box/1", "train/box/1", "train/run/1", "train/run/1", "test/box/1", "test/box/1"]
    path = make(tmp_path / "s", even(*range(6)), sequence=labels, cadence=None)
    assert frames(windows(path, PAIRS, sequences=["train/*"])) == [(0, 1), (2, 3)]
    assert frames(windows(path, PAIRS, sequences=["*/box/*", "nothing"])) == [(0, 1), (4, 5)]
    with pytest.raises(ConfigError, match=r"No window of 2 unbroken frames in .*\(sequences walk\*\)"):
        windows(path, PAIRS, sequences=["walk*"])


def test_late_frames_take_their_place(tmp_path: Path) -> None:
    path = make(tmp_path / "s", even(0, 1, 3, 4), times=[0, 1, 3, 4], quantum=1.0)
    make(tmp_path / "s", even(2), times=[2], quantum=1.0)
    scaling = ScalingSettings(kind="linear", low=0, high=10)
    found = windows(path, changed(SETTINGS, scaling=scaling))
    assert frames(found) == [(0, 1, 4, 2, 3)]
    batch = found[0, 0]
    assert batch["past"][0, :, 0, 0, 0].tolist() == pytest.approx([0, 0.1])
    assert batch["future"][0, :, 0, 0, 0].tolist() == pytest.approx([0.2, 0.3, 0.4])


@pytest.mark.parametrize("packing", [{}, {"quantum": 1.0}, {"levels": np.arange(20.0)}, {"levels": GREYS}], ids=str)
def test_a_tolerated_gap_is_a_frame_of_no_data(tmp_path: Path, packing: dict) -> None:
    cube = cube_of(np.ascontiguousarray(even(1, 1, 1, 1)), times=[0, 1, 3, 4], **packing)
    cube.attrs["tolerated_gap"] = 1
    FrameStore(tmp_path / "s").append(cube, message="m")
    found = windows(str(tmp_path / "s"))
    assert frames(found) == [(0, 1, MISSING, 2, 3)]
    batch = found[0, 0]
    assert batch["mask"].mean(dim=(0, 2, 3, 4)).tolist() == [0, 1, 1]
    assert not batch["future"][:, 0].any()
    assert batch["future"][:, 1:].all()


def test_too_short_a_run_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No window of 5 unbroken frames in .*\(all of it\)"):
        windows(synthetic.make_store(tmp_path / "s", range(4)))


# --- what they hold -----------------------------------------------------------------------------------


def test_a_window_holds_scaled_frames_and_a_mask(tmp_path: Path) -> None:
    settings = changed(SETTINGS, scaling=ScalingSettings(kind="linear", low=0, high=24))
    batch = windows(synthetic.make_store(tmp_path / "s", range(5)), settings)[0, 0]
    assert batch["past"].shape == (1, 2, 1, 48, 64)
    assert batch["future"].shape == batch["mask"].shape == (1, 3, 1, 48, 64)
    assert batch["past"][0, 0, 0, 24, 16].item() == pytest.approx(0.5)
    assert batch["future"][0, 0, 0, 24, 18].item() == pytest.approx(0.5)
    assert not batch["mask"][..., :6, :6].any()
    assert batch["mask"][..., 6:, 6:].all()


PACKINGS = {
    "float32": {},
    "16 bits": {"quantum": 0.05},
    "8 bits": {"quantum": 0.25, "floor": -10.0},
    "255 levels": {"levels": VIL_LEVELS},
    "256 levels": {"levels": 53 * GREYS},
}
SCALES = st.sampled_from([Scaling("decibel", 0.1, 30.0), Scaling("linear", 0.0, 20.0), Scaling("linear", -10.0, 60.0)])


@given(
    packing=st.sampled_from(sorted(PACKINGS)),
    held=st.sampled_from(["rainfall_rate", "reflectivity"]),
    wanted=st.sampled_from(["rainfall_rate", "reflectivity"]),
    late=st.integers(0, 6),
    scaling=SCALES,
    resize=st.sampled_from([None, None, 16]),
    missing=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=25)
def test_windows_are_what_the_store_says(
    tmp_path_factory: pytest.TempPathFactory,
    packing: str,
    held: str,
    wanted: str,
    late: int,
    scaling: Scaling,
    resize: int | None,
    missing: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.uniform(0, 50, (7, 16, 16)).astype(np.float32) * (rng.random((7, 16, 16)) < 0.6)
    if packing != "256 levels":
        values[rng.random(values.shape) < 0.1] = np.nan
    folder = tmp_path_factory.mktemp("store")
    for times in ([time for time in range(7) if time != late], [late]):
        path = make(folder / "s", values[times], name=held, times=times, **PACKINGS[packing])
    fields = scaling.encode(convert(open_store(path)[held].values, held, wanted))
    asked = changed(SETTINGS, quantity=wanted, resize=resize, scaling=vars(scaling))
    found = windows(path, asked, missing=missing)
    assert len(found) == 3
    for index in range(3):
        batch, want = found[index, 0], fields[index : index + 5]
        np.testing.assert_array_equal(batch["past"][0, :, 0], want[:2] if missing else np.nan_to_num(want[:2]))
        np.testing.assert_array_equal(batch["future"][0, :, 0], np.nan_to_num(want[2:]))
        np.testing.assert_array_equal(batch["mask"][0, :, 0], np.isfinite(want[2:]))


def test_reflectivity_is_turned_into_rain_by_the_relation_of_its_store(tmp_path: Path) -> None:
    settings = changed(SETTINGS, scaling=ScalingSettings(kind="linear", low=0, high=100))
    for zr, rain in (({}, (1000 / 200) ** (1 / 1.6)), ({"zr_a": 58.53, "zr_b": 1.56}, (1000 / 58.53) ** (1 / 1.56))):
        cube = cube_of(np.ascontiguousarray(even(*[30] * 5)), name="reflectivity", quantum=0.5).assign_attrs(zr)
        FrameStore(tmp_path / f"{len(zr)}").append(cube, message="m")
        value = windows(str(tmp_path / f"{len(zr)}"), settings)[0, 0]["past"][0, 0, 0, 0, 0].item()
        assert value * 100 == pytest.approx(rain, rel=1e-5)


def test_stores_of_different_packings_make_one_set(tmp_path: Path) -> None:
    settings = changed(PAIRS, scaling=ScalingSettings(kind="linear", low=0, high=10))
    kinds = {"levels": {"levels": np.arange(11.0)}, "codes": {"quantum": 0.5}, "floats": {}}
    paths = []
    for level, (kind, packing) in enumerate(kinds.items(), 1):
        values = np.array(even(level, 2))
        values[1, 5, 5] = np.nan if level > 1 else 2
        paths.append(make(tmp_path / kind, values, **packing))
    for count, kind in ((1, np.uint8), (2, np.int16), (3, np.float32)):
        found = Windows([Span(store=path) for path in paths[:count]], settings, training=False)
        assert found.dtype == kind
        batch = found.unpack(found.__getitems__([(index, 0) for index in range(count)]))
        assert batch["past"][:, 0, 0, 5, 5].tolist() == pytest.approx([0.1, 0.2, 0.3][:count])
        assert batch["mask"][:, 0, 0, 5, 5].tolist() == [1, 0, 0][:count]
        assert batch["future"][:, 0, 0, 5, 5].tolist() == pytest.approx([0.2, 0, 0][:count])


def video(path: Path, *, side: int = 32) -> str:
    """Two frames of a colour video; red is 0.2, green 0.4, blue 0.6."""
    values = {
        name: np.full((2, side, side), level, np.float32)
        for name, level in (("red", 0.2), ("green", 0.4), ("blue", 0.6))
    }
    stamps = [synthetic.START, synthetic.START + synthetic.STEP]
    cube = cubes.make(values, stamps, Grid.picture((side, side)), sequence="clip", levels=GREYS)
    FrameStore(path).append(cube, message="m")
    return str(path)


@pytest.mark.parametrize(("changes", "kind"), [({"crop": 16}, np.int16), ({"resize": 24}, np.float32)], ids=str)
def test_colour_video_beside_radar(tmp_path: Path, changes: dict, kind: type) -> None:
    radar = make(tmp_path / "radar", even(5, 5), quantum=0.5)
    scaling = ScalingSettings(kind="linear", low=0, high=10)
    chosen = changed(PAIRS, channels=3, scaling=scaling, **changes)
    spans = [Span(store=video(tmp_path / "video"), quantity="intensity"), Span(store=radar)]
    found = Windows(spans, chosen, training=True)
    assert found.dtype == kind
    assert found.scaling == scaling.build()
    batch = found.unpack(found.__getitems__([(0, 0), (1, 0)]))
    side = changes.get("crop") or changes["resize"]
    assert batch["past"].shape == batch["future"].shape == batch["mask"].shape == (2, 1, 3, side, side)
    assert batch["past"][0, 0].mean(dim=(1, 2)).tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert batch["past"][1, 0].mean(dim=(1, 2)).tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert batch["mask"].all()


def test_grey_video_beside_radar_in_one_channel(tmp_path: Path) -> None:
    grey = make(tmp_path / "grey", even(0.2, 0.4), name="intensity", sequence="clip", cadence=None, levels=GREYS)
    radar = make(tmp_path / "radar", even(5, 5), quantum=0.5)
    spans = [Span(store=radar), Span(store=grey, quantity="intensity", scaling={"kind": "linear", "low": 0, "high": 2})]
    found = Windows(spans, PAIRS, training=False)
    assert found[1, 0]["past"].mean().item() == pytest.approx(0.1)
    assert found[0, 0]["past"].mean().item() == pytest.approx(np.log(50) / np.log(3000))


def test_a_quantity_that_a_store_does_not_hold_is_refused(tmp_path: Path) -> None:
    path = video(tmp_path / "video")
    for channels in (1, 3):
        with pytest.raises(ConfigError, match=r"holds .*red.*, and no formula makes rainfall_rate of it"):
            windows(path, changed(PAIRS, channels=channels))


def test_frames_of_different_sizes_need_a_common_one(tmp_path: Path) -> None:
    spans = [Span(store=make(tmp_path / "a", even(1, 2))), Span(store=synthetic.make_store(tmp_path / "b", range(2)))]
    with pytest.raises(ConfigError, match=r"different sizes \(\(16, 16\), \(48, 64\)\); set windows.resize"):
        Windows(spans, PAIRS, training=False)
    assert Windows(spans, changed(PAIRS, resize=32), training=False).shape == (2, 1, 32, 32)
    assert Windows(spans, changed(PAIRS, crop=16), training=False).shape == (2, 1, 16, 16)


def test_crops_that_cannot_be_cut_are_refused(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "s", range(5))
    with pytest.raises(ConfigError, match=r"crop 50 is larger than the grid \(48 x 64\)"):
        windows(path, changed(SETTINGS, crop=50))
    with pytest.raises(ConfigError, match=r"crops_per_window needs windows\.crop"):
        windows(path, changed(SETTINGS, crops_per_window=2))


def test_crops_prefer_rain(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "s", range(5))
    settings = changed(SETTINGS, crop=16, crops_per_window=400)
    even, wet = (windows(path, changed(settings, rain_weight=weight))[0, 1]["past"].mean() for weight in (0.0, 50.0))
    assert wet > 1.7 * even


@pytest.mark.parametrize("packing", [{}, {"quantum": 1.0}], ids=str)
def test_flips_turn_a_window_as_a_whole(tmp_path: Path, packing: dict) -> None:
    """Of a square there are eight ways to turn it; frame t + 1 shows frame t plus one everywhere."""
    field = np.arange(256, dtype=np.float32).reshape(16, 16)
    path = make(tmp_path / "s", np.stack([field, field + 1]), **packing)
    scaling = ScalingSettings(kind="linear", low=0, high=300)
    found = windows(path, changed(PAIRS, crop=16, flips=True, scaling=scaling), training=True)
    seen = set()
    for seed in range(64):
        batch = found[0, seed]
        past, future = (np.rint(300 * batch[name][0, 0, 0].numpy()) for name in ("past", "future"))
        assert (future == past + 1).all()
        assert sorted(past.ravel()) == list(range(256))
        seen.add((past[0, 0], past[0, -1]))
    assert seen == {(0, 15), (15, 0), (240, 255), (255, 240), (0, 240), (240, 0), (15, 255), (255, 15)}
    assert not windows(path, changed(PAIRS, flips=True), training=False)._flips


def test_both_ways_to_look_codes_up_agree() -> None:
    rng = np.random.default_rng(0)
    for kind, size in ((np.uint8, 256), (np.int16, 2**16)):
        limits = np.iinfo(kind)
        codes = torch.from_numpy(rng.integers(limits.min, limits.max + 1, (2, 3, 1, 8, 8)).astype(kind))
        tables, source = torch.from_numpy(rng.random((2, size)).astype(np.float32)), torch.tensor([1, 0])
        assert torch.equal(module._look_up(tables, codes, source), module._look_up_on_cpu(tables, codes, source))


def test_loader_processes_get_no_tables(tmp_path: Path) -> None:
    found = windows(synthetic.make_store(tmp_path / "s", range(5)))
    want = found[0, 0]["past"]
    there = pickle.loads(pickle.dumps(found))
    assert "unpack" in vars(found)
    assert "unpack" not in vars(there)
    assert torch.equal(there[0, 0]["past"], want)


# --- clips made on the fly ----------------------------------------------------------------------------


def test_clips_are_made_on_the_fly(tmp_path: Path) -> None:
    span = Moving(images=idx(tmp_path / "digits.gz"), objects=2, clips=3)
    settings = changed(SETTINGS, quantity="intensity")
    found = Windows([span], settings, training=False)
    assert (len(found), found.dtype, found.shape) == (3, np.uint8, (5, 1, 64, 64))
    clip = found.sources[0].read(2)[:, 0] / np.float32(255)
    batch = found[2, 0]
    np.testing.assert_allclose(torch.cat([batch["past"], batch["future"]], dim=1)[0, :, 0].numpy(), clip, rtol=1e-6)
    assert batch["mask"].all()
    small = Windows([span], changed(settings, resize=32), training=False)[2, 0]["past"][0, :, 0].numpy()
    np.testing.assert_allclose(small, clip[:2].reshape(2, 32, 2, 32, 2).mean(axis=(2, 4)), atol=1e-6)


def clips_of_an_epoch(found: Windows, epoch: int, *, workers: int = 0, skip: int = 0) -> list[bytes]:
    made = loader(found, batch_size=2, workers=workers, seed=5, shuffle=found.training)
    made.draws.set_epoch(epoch)
    made.draws.skip = skip
    return [clip.numpy().tobytes() for batch in made for clip in torch.cat([batch["past"], batch["future"]], dim=1)]


@pytest.mark.parametrize("resize", [None, 32])
def test_training_sees_a_clip_once_and_validation_the_same_ones(tmp_path: Path, resize: int | None) -> None:
    span = Moving(images=idx(tmp_path / "digits.gz"), clips=6)
    settings = changed(SETTINGS, quantity="intensity", resize=resize)
    training, validation = (Windows([span], settings, training=anew) for anew in (True, False))
    epochs = [clips_of_an_epoch(training, epoch) for epoch in range(3)]
    assert len({clip for clips in epochs for clip in clips}) == 18
    assert epochs[1] == clips_of_an_epoch(training, 1), "an epoch follows from seed and number alone"
    assert epochs[1][2:] == clips_of_an_epoch(training, 1, skip=2), "a resumed one too"
    fixed = [clips_of_an_epoch(validation, epoch) for epoch in range(2)]
    assert fixed[0] == fixed[1]
    assert len(set(fixed[0])) == 6
    assert "drawn anew" in training.names([0])[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_loader_processes_draw_the_same_clips(tmp_path: Path) -> None:
    span = Moving(images=idx(tmp_path / "digits.gz"), objects=[1, 2, 3], clips=4)
    training = Windows([span], changed(SETTINGS, quantity="intensity"), training=True)
    assert clips_of_an_epoch(training, 1, workers=2) == clips_of_an_epoch(training, 1)


# --- how often they are drawn -------------------------------------------------------------------------


def test_wet_windows_are_drawn_more_often(tmp_path: Path) -> None:
    """Means of the windows are 0, 1 and 3, 4/3 on average: weights 1 + 2 x 0, 1 + 2 x 3/4, 1 + 2 x 9/4 of 9."""
    path = make(tmp_path / "s", even(0, 0, 2, 4))
    found = windows(path, changed(PAIRS, event_weight=2))
    assert found.probabilities() == pytest.approx([1 / 9, 2.5 / 9, 5.5 / 9])
    assert windows(path, PAIRS).probabilities() is None


def test_of_reflectivity_the_wet_share_counts(tmp_path: Path) -> None:
    """Wet shares 0, 0, 1, 1: means 0, 1/2, 1. A mean of dBZ would be negative."""
    path = make(tmp_path / "s", even(-32, -32, 40, 20), name="reflectivity")
    for quantity in ("reflectivity", "rainfall_rate"):
        found = windows(path, changed(PAIRS, quantity=quantity, event_weight=1))
        assert found.probabilities() == pytest.approx([1 / 6, 2 / 6, 3 / 6])


def test_where_it_never_rains_all_windows_are_alike(tmp_path: Path) -> None:
    path = make(tmp_path / "s", even(0, 0, 0))
    assert windows(path, changed(PAIRS, event_weight=5)).probabilities() is None


def test_spans_are_drawn_by_temperature_and_weight(tmp_path: Path) -> None:
    """16 and 4 windows: 16 : 4 at temperature 1, 4 : 2 at 2; the second span counts threefold, 4 : 6."""
    paths = [make(tmp_path / name, even(*range(count + 1))) for name, count in (("a", 16), ("b", 4))]

    def odds(temperature: float, weight: float) -> np.ndarray | None:
        spans = [Span(store=paths[0]), Span(store=paths[1], weight=weight)]
        return Windows(spans, changed(PAIRS, temperature=temperature), training=False).probabilities()

    assert odds(1, 1) is None
    assert odds(2, 1) == pytest.approx([4 / 6 / 16] * 16 + [2 / 6 / 4] * 4)
    assert odds(2, 3) == pytest.approx([0.4 / 16] * 16 + [0.6 / 4] * 4)
    assert odds(100, 1)[0] == pytest.approx(0.5 / 16, rel=0.01)  # type: ignore[index]


def test_draws_follow_the_probabilities(tmp_path: Path) -> None:
    found = windows(make(tmp_path / "s", even(0, 0, 2, 4)), changed(PAIRS, event_weight=2))
    drawn = [window for window, _ in WindowSampler(found, seed=1, count=9000, shuffle=True)]
    counts = np.bincount(drawn)
    spread = np.sqrt(9000 * found.probabilities() * (1 - found.probabilities()))
    assert (np.abs(counts - [1000, 2500, 5500]) < 4 * spread).all()
    assert [window for window, _ in WindowSampler(found, seed=1, count=None, shuffle=False)] == [0, 1, 2]


def test_epochs_differ_and_validation_does_not(tmp_path: Path) -> None:
    source = windows(synthetic.make_store(tmp_path / "s", range(12)))
    fitting, held_out = (WindowSampler(source, seed=0, count=20, shuffle=shuffle) for shuffle in (True, False))
    first = list(fitting), list(held_out)
    for draws in (fitting, held_out):
        draws.set_epoch(1)
    assert list(fitting) != first[0]
    assert list(held_out) == first[1]
    assert np.bincount([window for window, _ in first[0]]).max() <= 3  # no window is drawn far more often


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [None, 4])
@pytest.mark.parametrize("event_weight", [0, 2])
def test_processes_share_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, count: int | None, event_weight: float
) -> None:
    found = windows(make(tmp_path / "s", even(*range(9))), changed(PAIRS, event_weight=event_weight))  # 8 windows
    whole = list(WindowSampler(found, seed=0, count=count and count * processes, shuffle=True))
    parts = []
    for rank in range(processes):
        monkeypatch.setattr(module, "_processes", lambda rank=rank: (rank, processes))
        draws = WindowSampler(found, seed=0, count=count, shuffle=True)
        parts.append(list(draws))
        assert len(draws) == len(parts[-1]) == (count or 8 // processes)
        draws.skip = 2
        assert [list(draws), list(draws)] == [parts[-1][2:], parts[-1]], "only the next epoch is cut"
    together = [drawn for step in zip(*parts, strict=True) for drawn in step]
    assert together == whole[: len(together)]


# --- train and valid ----------------------------------------------------------------------------------


def apart(one: Windows, other: Windows) -> None:
    check_apart(one.sources, other.sources)


def test_overlap_of_train_and_valid_names_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = synthetic.make_store(tmp_path / "s", range(14))
    monkeypatch.chdir(tmp_path)
    for same in (path, "s", "./s/"):
        with pytest.raises(
            ConfigError, match=r"2 frames are in train and valid, 2010-08-26T00:30.* to 2010-08-26T00:35"
        ):
            apart(windows(path, end="2010-08-26T00:40Z"), windows(same, start="2010-08-26T00:30Z"))
    apart(windows(path, end="2010-08-26T00:30Z"), windows(path, start="2010-08-26T00:30Z"))


def test_the_same_frames_in_two_stores_overlap(tmp_path: Path) -> None:
    train = make(tmp_path / "train", even(1, 2, 0, 3, 4))
    valid = make(tmp_path / "valid", even(0, 3, 4, 5), times=[2, 3, 4, 5])
    with pytest.raises(ConfigError, match=r"2 frames are in train and valid, 2010-08-26T00:15.* to 2010-08-26T00:20"):
        apart(windows(train, PAIRS), windows(valid, PAIRS))  # the dry frame at 00:10 may be of any radar


def test_frames_at_one_time_of_two_radars_do_not_overlap(tmp_path: Path) -> None:
    apart(windows(make(tmp_path / "a", even(1, 2)), PAIRS), windows(make(tmp_path / "b", even(3, 4)), PAIRS))


def test_clips_of_one_seed_overlap(tmp_path: Path) -> None:
    digits = Moving(images=idx(tmp_path / "digits"), seed=1, clips=4)
    settings = changed(PAIRS, quantity="intensity")
    train = Windows([digits], settings, training=True)
    for change in ({}, {"clips": 2}, {"canvas": 32}):
        valid = Windows([digits.model_copy(update=change)], settings, training=False)
        with pytest.raises(ConfigError, match="train and valid make the same clips; give them different seeds"):
            apart(train, valid)
    apart(train, Windows([digits.model_copy(update={"seed": 2})], settings, training=False))


def test_a_random_share_is_no_validation() -> None:
    with pytest.raises(ValueError, match="a share of the windows at random would hold frames that are trained on"):
        Recipe.model_validate(
            {"name": "x", "model": "convgru", "train": [{"store": "s"}], "valid": 0.1, "windows": SETTINGS.model_dump()}
        )


# --- loading ------------------------------------------------------------------------------------------


def test_the_loader_draws_what_is_drawn(tmp_path: Path) -> None:
    settings = changed(SETTINGS, crop=16, crops_per_window=2, flips=True)
    source = windows(synthetic.make_store(tmp_path / "s", range(12)), settings, training=True)
    want = [source[drawn]["past"] for drawn in WindowSampler(source, seed=3, count=None, shuffle=True)]
    batches = loader(source, batch_size=2, workers=0, seed=3, shuffle=True)
    assert all(torch.equal(batch["past"], past) for batch, past in zip(batches, want, strict=True))


def test_the_last_batch_may_be_smaller(tmp_path: Path) -> None:
    source = windows(synthetic.make_store(tmp_path / "s", range(12)))  # 8 windows
    batches = loader(source, batch_size=3, workers=0, seed=0, shuffle=True)
    assert [len(batch["past"]) for batch in batches] == [3, 3, 2]
    assert len(batches) == 3
    assert len(list(loader(source, batch_size=3, workers=0, seed=0, shuffle=True, batches=5))) == 5


def test_a_frame_with_as_much_missing_as_may_be_is_there(tmp_path: Path) -> None:
    values = np.array(even(1, 1, 1))
    values[1, 1:] = np.nan  # 15 of 16 rows, 0.9375
    path = make(tmp_path / "s", values)
    assert len(windows(path, changed(PAIRS, most_missing=0.9375))) == 2
    with pytest.raises(ConfigError, match="No window of 2 unbroken frames"):
        windows(path, changed(PAIRS, most_missing=0.9374))


def test_rain_is_made_of_echoes_by_the_relation_of_the_source(tmp_path: Path) -> None:
    """30 dBZ are Z = 1000: by Z = 250 R^2 that is 2 mm/h."""
    cube = cube_of(np.array(even(30, 30)), name="reflectivity")
    cube.attrs |= {"zr_a": 250.0, "zr_b": 2.0}
    FrameStore(tmp_path / "s").append(cube, message="m")
    found = windows(str(tmp_path / "s"), PAIRS)
    rain = found.scaling.decode(found[0, 0]["future"].numpy())
    np.testing.assert_allclose(rain, 2.0, rtol=1e-4)
