"""A test set forecast with its frames kept: arrays, pictures, a store, and scores that fit them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nowcast.benchmark.kept import keep
from nowcast.core import cube as cubes
from nowcast.core.errors import BadInput, ConfigError, OptionError
from nowcast.core.units import COLOURS
from nowcast.readers import pixels
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Card
from nowcast.store import FrameStore, open_store
from nowcast.verification.published import score_as
from tests import synthetic

SHAPE = (20, 24)


def clips(path: Path, names: tuple[str, ...], *, lengths: tuple[int, ...] = (6, 6, 9)) -> np.ndarray:
    """A store of clips of 8-bit pictures, the last two to test on; returns their frames (T, C, H, W)."""
    rng, made = np.random.default_rng(0), []
    for number, length in enumerate(lengths):
        frames = pixels.LEVELS[rng.integers(0, 256, (length, len(names), *SHAPE))]
        fields = {name: frames[:, channel] for channel, name in enumerate(names)}
        times, split = np.datetime64(0, "s") + np.arange(length), "train" if not number else "test"
        cube = cubes.make(
            fields, times, pixels.picture(SHAPE), sequence=f"{split}/{number}", split=split, levels=pixels.LEVELS
        )
        FrameStore(path).append(cube, message="clip")
        made.append(frames)
    return np.concatenate(made[1:])


@pytest.mark.parametrize("names", [("intensity",), COLOURS], ids=["grey", "colour"])
def test_arrays_pictures_store_and_scores_tell_the_same(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Persistence takes one frame: windows of 1 + 2 frames, two in a clip of 6, three in one of 9."""
    frames = clips(tmp_path / "clips", names)
    out = keep(
        "persistence",
        str(tmp_path / "clips"),
        tmp_path / "out",
        split="test",
        frames=("npy", "png", "gif", "strip", "store"),
        pictures=2,
        leads=2,
        protocols=("openstl",),
    )
    inputs, trues, preds = (np.load(out / f"{name}.npy") for name in ("inputs", "trues", "preds"))
    windows = frames.reshape(5, 3, len(names), *SHAPE)
    assert (inputs == windows[:, :1]).all() and (trues == windows[:, 1:]).all()
    assert (preds == np.repeat(windows[:, :1], 2, axis=1)).all()
    rows = list(csv.DictReader((out / "clips.csv").read_text().splitlines()))
    assert [row["sequence"] for row in rows] == ["test/1"] * 2 + ["test/2"] * 3
    assert rows[1]["time"] == "1970-01-01T00:00:03"
    theirs = score_as(preds, trues, "openstl")
    cells = f"{theirs['mse']:.2f} | {theirs['mae']:.2f} | {theirs['rmse']:.2f} | {theirs['psnr']:.2f}"
    assert f"| persistence | {cells} | {theirs['ssim']:.4f} |" in (out / "scores.md").read_text()
    assert sorted(path.name for path in (out / "png").iterdir()) == ["1", "2"]
    files = {"gt1.png", "gt2.png", "gt3.png", "pd2.png", "pd3.png"}
    assert {path.name for path in (out / "png/2").iterdir()} == files
    with Image.open(out / "png/2/gt3.png") as image:
        picture = np.atleast_3d(np.asarray(image))
    assert (picture == np.moveaxis(np.rint(255 * trues[1, 1]), 0, 2)).all()
    with Image.open(out / "gif/1.gif") as gif, Image.open(out / "strip/1.png") as strip:
        assert gif.n_frames == 3
        assert strip.size == (3 * SHAPE[1] + 2 * 2, 2 * SHAPE[0] + 2)
    kept = open_store(out / "store")
    assert (kept[names[-1]].values == preds[:, :, -1].reshape(10, *SHAPE)).all()
    assert kept["sequence"].values[0] == "test/1#1" and kept["time"].values[0] == np.datetime64(1, "s")


def test_radar_keeps_its_unit_its_gaps_and_its_place(tmp_path: Path) -> None:
    store = synthetic.make_store(tmp_path / "frames", range(12))
    network = synthetic.tiny(tmp_path / "convgru.safetensors", "convgru:debug")
    out = keep(str(network), store, tmp_path / "out", frames=("npy", "store"))
    trues, preds = np.load(out / "trues.npy"), np.load(out / "preds.npy")
    assert trues.shape == preds.shape == (3, 2, 1, 48, 64)
    assert np.nanmax(trues) > 10 and np.isnan(trues[..., :6, :6]).all(), "mm/h, and a corner that no radar sees"
    assert np.isnan(preds[..., :6, :6]).all()
    kept = open_store(out / "store")
    assert kept["rainfall_rate"].attrs["units"] == "mm h-1"
    assert (kept["y"].values == open_store(store)["y"].values).all()
    assert kept["time"].values[0] == synthetic.START + 2 * synthetic.STEP


def test_models_of_other_lengths_are_compared_on_the_same_frames(tmp_path: Path) -> None:
    frames = clips(tmp_path / "clips", ("intensity",), lengths=(6, 6, 6))
    out = keep("persistence", str(tmp_path / "clips"), tmp_path / "out", split="test", inputs=4, leads=2)
    assert (np.load(out / "trues.npy") == frames.reshape(2, 6, 1, *SHAPE)[:, 4:]).all()
    assert (np.load(out / "preds.npy") == frames.reshape(2, 6, 1, *SHAPE)[:, 3:4]).all()


def test_what_cannot_be_done_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    clips(tmp_path / "clips", ("intensity",))
    store, out = str(tmp_path / "clips"), tmp_path / "out"
    with pytest.raises(OptionError, match="Frames are not kept as mp4; known: npy, png, gif, strip, store"):
        keep("persistence", store, out, frames=("mp4",))
    with pytest.raises(OptionError, match="Unknown protocol 'nix'"):
        keep("persistence", store, out, protocols=("nix",))
    with pytest.raises(ConfigError, match="there is no split 'valid'; its splits: test, train"):
        keep("persistence", store, out, split="valid")
    with pytest.raises(ConfigError, match="No window of 31 unbroken frames"):
        keep("persistence", store, out, leads=30)
    other = synthetic.make_store(tmp_path / "frames", range(0, 24, 2), sequence="slow")
    network = synthetic.tiny(tmp_path / "convgru.safetensors", "convgru:debug")
    with pytest.raises(ConfigError, match="its step is 600 s, that of the network 300 s"):
        keep(str(network), other, out)
    assert not out.exists() and not list(tmp_path.glob("*out*"))
    with pytest.raises(ConfigError, match="takes 2 frames, and 1 before the forecast are too few"):
        keep(str(network), other, out, inputs=1)
    out.mkdir()
    with pytest.raises(BadInput, match="is there already; give another --out, or remove it"):
        keep("persistence", store, out, leads=2)


def test_a_colour_network_forecasts_a_colour_video(tmp_path: Path) -> None:
    clips(tmp_path / "clips", COLOURS)
    card = Card.model_validate(
        synthetic.TINY.model_dump()
        | {"quantity": "intensity", "channels": 3, "model": "convgru:debug", "recipe": {}, "cadence_seconds": 1}
        | {"scaling": {"kind": "linear", "low": 0, "high": 1}}
    )
    network = checkpoint.build("convgru:debug", in_steps=2, out_steps=2, channels=3)
    path = checkpoint.save(tmp_path / "colour.safetensors", network, card)
    out = keep(str(path), str(tmp_path / "clips"), tmp_path / "out", split="test")
    made = np.load(out / "preds.npy")
    assert made.shape == (3, 2, 3, *SHAPE)
    assert not np.allclose(made[:, :, 0], made[:, :, 1])
