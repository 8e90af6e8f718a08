from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nowcast.core.cube import channels
from nowcast.core.errors import BadInput
from nowcast.core.grid import NORTH_UP, SOUTH_UP, Grid
from nowcast.readers import Item, gs2pm
from nowcast.store.packing import Packing
from tests.fixtures import png
from tests.sources_clips import gs2pm as write

RAMP = np.arange(256).reshape(16, 16)


def only(source: Path):
    (item,) = gs2pm.find(source)
    return gs2pm.read(item)


def seconds(cube) -> list[int]:
    return cube["time"].values.astype("datetime64[s]").astype(int).tolist()


def constant(root: Path, domain: str, picture: np.ndarray) -> Path:
    """A sample of 20 times the same picture."""
    folder = write(root, domain)
    for path in folder.iterdir():
        Image.fromarray(picture.astype(np.uint8)).save(path)
    return folder


@pytest.mark.parametrize(
    ("domain", "name", "values", "step"),
    [
        # levels 0, 1, 84 and 255 of the grey ramp
        ("hko7", "reflectivity", (-10, -10 + 70 / 255, -10 + 84 * 70 / 255, 60), 360),
        ("hko", "reflectivity", (-10, -10 + 70 / 255, -10 + 84 * 70 / 255, 60), 360),
        ("shanghai2020", "reflectivity", (0, 70 / 255, 84 * 70 / 255, 70), 345),
        ("sevir-vil", "vil", (0, 0, np.exp(0.1 / 38.9), np.nan), 300),
        ("sevir-vis", "intensity", (0, 1 / 255, 84 / 255, 1), 300),
        ("kth", "intensity", (0, 1 / 255, 84 / 255, 1), 1),
        ("moving_mnist", "intensity", (0, 1 / 255, 84 / 255, 1), 1),
    ],
)
def test_grey_domains(tmp_path, domain, name, values, step):
    constant(tmp_path, domain, RAMP)
    cube = only(tmp_path)
    assert channels(cube) == [name]
    field = cube[name].values
    assert field.shape == (20, 16, 16)
    np.testing.assert_allclose(field[7].ravel()[[0, 1, 84, 255]], values, rtol=1e-5, atol=1e-5)
    assert seconds(cube) == [step * index for index in range(20)]
    packing = Packing.wanted(cube[name])
    np.testing.assert_array_equal(packing.unpack(packing.pack(field)), field)
    assert packing.dtype == np.uint8


@pytest.mark.parametrize(("domain", "red", "blue"), [("bair", 200, 50), ("human", 200, 50), ("kitticaltech", 50, 200)])
def test_coloured_domains(tmp_path, domain, red, blue):
    picture = np.stack([np.full((12, 16), level) for level in (200, 100, 50)], axis=-1)
    constant(tmp_path, domain, picture)
    cube = only(tmp_path)
    assert channels(cube) == ["red", "green", "blue"]
    found = [cube[colour].values[3, 5, 6] * 255 for colour in ("red", "green", "blue")]
    assert found == pytest.approx([red, 100, blue], abs=1e-4)
    assert Grid.of(cube).shape == (12, 16)
    assert cube["red"].encoding["levels"].size == 256


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    # every frame is one level above the last: input10 follows input9, then ground_truth1
    write(tmp_path, "kth", levels=np.full((8, 8), 30))
    levels = only(tmp_path)["intensity"].values[:, 0, 0] * 255
    np.testing.assert_allclose(levels, np.arange(30, 50), atol=1e-4)


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_grey_in_any_mode(tmp_path, mode):
    write(tmp_path, "moving_mnist", levels=RAMP // 2, mode=mode)
    np.testing.assert_allclose(only(tmp_path)["intensity"].values[0] * 255, RAMP // 2, atol=1e-4)


def test_labels_and_splits(tmp_path):
    for split, sample in (("test", 1), ("train", 10), ("train", 9), ("train", 100)):
        write(tmp_path / "data" / "pam", "hko", sample, split=split)
    items = list(gs2pm.find(tmp_path))
    assert [item.key for item in items] == [
        "train/hko7/sample9",
        "train/hko7/sample10",
        "train/hko7/sample100",
        "test/hko7/sample1",
    ]
    assert str(items[0]) == "input1.png[train/hko7/sample9]"  # of all samples a different one
    cube = gs2pm.read(items[-1])
    assert set(cube["sequence"].values) == {"test/hko7/sample1"} and set(cube["split"].values) == {"test"}
    assert (cube.attrs["zr_a"], cube.attrs["zr_b"]) == (58.53, 1.56)
    assert "cadence_seconds" not in cube.attrs


def test_sources(tmp_path):
    first = write(tmp_path / "data" / "pam", "kth", 1)
    write(tmp_path / "data" / "pam", "kth", 2)
    write(tmp_path / "data" / "pam", "kth", 1, split="test")
    pam = tmp_path / "data" / "pam"
    for source, count in (
        (tmp_path, 3),
        (tmp_path / "data", 3),
        (pam, 3),
        (pam / "train", 2),
        (pam / "train/kth", 2),
        (first, 1),
        (first / "input1.png", 1),
        (first / "ground_truth7.png", 1),
    ):
        assert len(list(gs2pm.find(source))) == count, source
        assert all(gs2pm.read(item).sizes["time"] == 20 for item in gs2pm.find(source))


def test_a_source_may_be_relative(tmp_path, monkeypatch):
    folder = write(tmp_path, "kth", 3)
    monkeypatch.chdir(folder)
    assert [item.key for item in gs2pm.find(Path())] == ["train/kth/sample3"]
    monkeypatch.chdir(folder.parent)
    assert gs2pm.read(next(gs2pm.find(Path("sample3"))))["sequence"].values[0] == "train/kth/sample3"


def test_one_domain_at_a_time(tmp_path):
    for domain in ("kth", "bair", "hko"):
        write(tmp_path, domain, mode="RGB")
    with pytest.raises(
        BadInput,
        match=r"holds 3 domains \(bair, hko7, kth\), a store one; name one, such as "
        r"'data/\*/bair'",
    ):
        list(gs2pm.find(tmp_path))
    assert len(list(gs2pm.find(tmp_path / "train" / "hko"))) == 1


def test_rows_of_sevir_run_north(tmp_path):
    write(tmp_path / "a", "sevir-vil")
    write(tmp_path / "b", "shanghai2020")
    assert Grid.of(only(tmp_path / "a")).orientation == SOUTH_UP
    assert Grid.of(only(tmp_path / "b")).orientation == NORTH_UP
    assert not Grid.of(only(tmp_path / "a")).on_earth


@pytest.mark.parametrize("name", ["input1.png", "input10.png", "ground_truth4.png"])
def test_a_missing_picture_is_named(tmp_path, name):
    (write(tmp_path) / name).unlink()
    (item,) = gs2pm.find(tmp_path)
    with pytest.raises(BadInput, match=f"{name}: does not exist"):
        gs2pm.read(item)


@pytest.mark.parametrize(
    ("domain", "picture", "fault"),
    [
        ("hko7", np.zeros((9, 16)), "has 9x16 pixels, input1.png 16x16"),
        ("hko7", np.zeros((16, 16, 4)), "is a PNG of mode RGBA, not L or P or RGB"),
        ("hko7", np.arange(768).reshape(16, 16, 3) % 256, "is a coloured picture"),
        ("bair", np.zeros((16, 16)), "is a PNG of mode L, not RGB"),
    ],
)
def test_refuses_another_picture(tmp_path, domain, picture, fault):
    folder = write(tmp_path, domain, mode="RGB")
    Image.fromarray(picture.astype(np.uint8)).save(folder / "input4.png")
    with pytest.raises(BadInput, match=rf"input4\.png: {fault}"):
        only(tmp_path)


def test_refuses_large_pictures(tmp_path):
    folder = write(tmp_path)
    png(folder / "input1.png", np.zeros((2000, 2000)))
    with pytest.raises(BadInput, match=r"input1\.png: has 2000x2000 pixels, more than its data set allows"):
        only(tmp_path)


def test_recognises_its_own(tmp_path):
    folder = write(tmp_path)
    assert gs2pm.recognises(folder / "input1.png")
    assert not gs2pm.recognises(folder / "input11.png")
    assert not gs2pm.recognises(png(tmp_path / "hko7" / "sample1" / "input1.png", RAMP))  # neither train nor test
    assert not gs2pm.recognises(png(tmp_path / "train" / "cats" / "sample1" / "input1.png", RAMP))


@pytest.mark.parametrize("key", ["", "train/hko7/sample2", "test/hko7/sample1"])
def test_refuses_samples_of_another_name(tmp_path, key):
    with pytest.raises(BadInput, match="is not of sample"):
        gs2pm.read(Item(write(tmp_path) / "input1.png", key))


def test_folders_of_nothing_are_refused(tmp_path):
    (tmp_path / "train" / "hko7").mkdir(parents=True)
    with pytest.raises(BadInput, match="hko7: holds no folder sample1"):
        list(gs2pm.find(tmp_path))
    with pytest.raises(BadInput, match=f"{tmp_path / 'train' / 'hko7'}: holds no folder sample1"):
        list(gs2pm.find(tmp_path / "train" / "hko7"))
