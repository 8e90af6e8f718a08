"""Windows never cross what they must not, and depend on the seed alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nowcast import store
from nowcast.config import ConfigError, ScalingSettings, Span, WindowSettings
from nowcast.spans import MISSING, check_apart
from nowcast.windows import Draws, Windows, loader
from tests import synthetic

SETTINGS = WindowSettings(quantity="rainfall_rate", in_steps=2, out_steps=3)


def windows(path: str, settings: WindowSettings = SETTINGS, *, start: str | None = None, end: str | None = None,
            augment: bool = False) -> Windows:  # fmt: skip
    return Windows([Span(store=path, start=start, end=end)], settings, augment=augment)


def frames(found: Windows) -> list[tuple[int, ...]]:
    return [tuple(source.positions(window)) for source in found.sources for window in range(source.weights.size)]


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


def test_a_tolerated_gap_is_a_frame_of_no_data(tmp_path: Path) -> None:
    cube = synthetic.cube([0, 1, 3, 4])
    cube.attrs["tolerated_gap"] = 1
    store.append(tmp_path / "s", cube, message="m")
    found = windows(str(tmp_path / "s"))
    assert frames(found) == [(0, 1, MISSING, 2, 3)]
    batch = found[0, 0]
    assert batch["mask"][0, :, 0].mean(dim=(1, 2)).tolist() == pytest.approx([0, 1 - 36 / 3072, 1 - 36 / 3072])


def test_a_window_holds_scaled_frames_and_a_mask(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"scaling": ScalingSettings(kind="linear", low=0, high=24)})
    batch = windows(synthetic.make_store(tmp_path / "s", range(5)), settings)[0, 0]
    assert batch["past"].shape == (1, 2, 1, 48, 64)
    assert batch["future"].shape == batch["mask"].shape == (1, 3, 1, 48, 64)
    assert batch["past"][0, 0, 0, 24, 16].item() == pytest.approx(0.5)
    assert batch["future"][0, 0, 0, 24, 18].item() == pytest.approx(0.5)
    assert not batch["mask"][..., :6, :6].any()
    assert batch["mask"][..., 6:, 6:].all()


def test_crops_prefer_rain(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "s", range(5))
    settings = SETTINGS.model_copy(update={"crop": 16, "crops_per_window": 400})
    even, wet = (windows(path, settings.model_copy(update={"rain_weight": weight}))[0, 1]["past"].mean()
                 for weight in (0.0, 50.0))  # fmt: skip
    assert wet > 1.7 * even


def test_reflectivity_is_turned_into_rain(tmp_path: Path) -> None:
    cube = synthetic.cube(range(5))
    dbz = (cube["rainfall_rate"] * 0 + 30.0).rename("reflectivity").assign_attrs(units="dBZ")
    store.append(tmp_path / "s", cube.drop_vars("rainfall_rate").assign(reflectivity=dbz), message="m")
    settings = SETTINGS.model_copy(update={"scaling": ScalingSettings(kind="linear", low=0, high=100)})
    value = windows(str(tmp_path / "s"), settings)[0, 0]["past"][0, 0, 0, 24, 24].item() * 100
    assert value == pytest.approx((1000 / 200) ** (1 / 1.6), rel=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_draw_does_not_depend_on_the_workers(tmp_path: Path, workers: int) -> None:
    path = synthetic.make_store(tmp_path / "s", range(12))
    settings = SETTINGS.model_copy(update={"crop": 16, "crops_per_window": 2, "flips": True})
    source = windows(path, settings, augment=True)
    want = [source[drawn]["past"] for drawn in Draws(source, seed=3, count=None, shuffle=True)]
    batches = loader(source, batch_size=2, workers=workers, seed=3, shuffle=True)
    assert all(torch.equal(batch["past"], past) for batch, past in zip(batches, want, strict=True))


def test_epochs_differ_and_validation_does_not(tmp_path: Path) -> None:
    source = windows(synthetic.make_store(tmp_path / "s", range(12)))
    fitting, held_out = (Draws(source, seed=0, count=20, shuffle=shuffle) for shuffle in (True, False))
    first = list(fitting), list(held_out)
    for draws in (fitting, held_out):
        draws.set_epoch(1)
    assert list(fitting) != first[0]
    assert list(held_out) == first[1]
    assert np.bincount([window for window, _ in first[0]]).max() <= 3  # no window is drawn far more often


def test_overlap_of_train_and_valid_names_the_frames(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "s", range(14))
    with pytest.raises(ConfigError, match=r"2 frames are in train and valid, 2010-08-26T00:30.* to 2010-08-26T00:35"):
        check_apart(windows(path, end="2010-08-26T00:40Z").sources, windows(path, start="2010-08-26T00:30Z").sources)
    check_apart(windows(path, end="2010-08-26T00:30Z").sources, windows(path, start="2010-08-26T00:30Z").sources)


def test_too_short_a_run_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No window of 5 unbroken frames"):
        windows(synthetic.make_store(tmp_path / "s", range(4)))


def test_a_crop_larger_than_the_grid_is_refused(tmp_path: Path) -> None:
    path = synthetic.make_store(tmp_path / "s", range(5))
    with pytest.raises(ConfigError, match="crop 50 is larger than the grid"):
        windows(path, SETTINGS.model_copy(update={"crop": 50}))[0, 0]
