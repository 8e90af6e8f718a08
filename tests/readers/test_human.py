import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from nowcast.core.errors import BadInput
from nowcast.readers import Item, human
from nowcast.readers.items import ITEM_BYTES
from tests.sources_clips import human as write
from tests.sources_clips import human_frame, jpeg

WALK, TALK = "S1_Walking 1.54138969", "S11_Discussion.60457274"


def numbers(cube) -> list[int]:
    return cube["time"].values.astype("datetime64[s]").astype(int).tolist()


def test_pictures_become_colours(tmp_path):
    root = write(tmp_path, {"train": [(WALK, 226, 236)]})
    (item,) = human.find(tmp_path)
    cube = human.read(item)
    assert numbers(cube) == [226, 231, 236]
    assert set(cube["sequence"].values) == {f"train/{WALK}/226"} and set(cube["split"].values) == {"train"}
    for index, number in enumerate(numbers(cube)):
        decoded = cv2.imread(str(root / "images" / f"{WALK}_{number:06}.jpg"))[..., ::-1]
        for colour, levels in zip(("red", "green", "blue"), np.moveaxis(decoded, -1, 0), strict=True):
            np.testing.assert_allclose(cube[colour].values[index] * 255, levels, atol=1)
        np.testing.assert_allclose(cube["red"].values[index] * 255, human_frame(number)[..., 0], atol=3)
    assert cube["y"].values[[0, -1]].tolist() == [23.5, 0.5]  # row 0 on top


def sequences(source: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for item in human.find(source):
        cube = human.read(item)
        for label, number in zip(cube["sequence"].values, numbers(cube), strict=True):
            found.setdefault(label, []).append(number)
    return found


def test_overlapping_clips_share_their_pictures(tmp_path):
    # two phases of one video, one of them with a hole; a clip that reaches over the hole joins nothing
    clips = [(WALK, 1, 36), (WALK, 11, 46), (WALK, 3, 23), (WALK, 61, 71), (WALK, 8, 28)]
    write(tmp_path, {"train": clips, "test": [(TALK, 6, 41)]})
    found = sequences(tmp_path)
    assert found == {
        f"train/{WALK}/1": list(range(1, 47, 5)),
        f"train/{WALK}/61": [61, 66, 71],
        f"train/{WALK}/3": list(range(3, 29, 5)),
        f"test/{TALK}/6": list(range(6, 42, 5)),
    }
    for split, listed in (("train", clips), ("test", [(TALK, 6, 41)])):
        for video, first, last in listed:  # every clip is a window of one sequence
            wanted = list(range(first, last + 1, 5))
            assert any(
                label.startswith(f"{split}/{video}/") and wanted == run[run.index(first) :][: len(wanted)]
                for label, run in found.items()
                if first in run
            )


def test_the_last_frame_ends_a_clip_even_if_no_fifth_one(tmp_path):
    write(tmp_path, {"train": [(WALK, 1, 14)]})
    assert sequences(tmp_path) == {f"train/{WALK}/1": [1, 6, 11]}


def test_sources(tmp_path):
    root = write(tmp_path, {"train": [(WALK, 1, 11)], "test": [(TALK, 6, 16)]})
    for source in (tmp_path, root, root / "images"):
        assert set(sequences(source)) == {f"train/{WALK}/1", f"test/{TALK}/6"}
    assert set(sequences(root / "test.txt")) == {f"test/{TALK}/6"}
    assert sequences(root / "images" / f"{WALK}_000006.jpg") == {f"train/{WALK}/1": [6]}
    jpeg(root / "images" / f"{WALK}_000007.jpg", human_frame(7))
    with pytest.raises(BadInput, match=r"_000007\.jpg: is in no clip of train\.txt or test\.txt"):
        list(human.find(root / "images" / f"{WALK}_000007.jpg"))


def test_items_are_cut_by_the_size_of_the_pictures(tmp_path):
    write(tmp_path, {"train": [(WALK, 1, 61)]}, shape=(1002, 1000))
    items = list(human.find(tmp_path))
    assert [item.key for item in items] == ["train:1:1-21", "train:1:26-46", "train:1:51-61"]
    assert items[1].path.name == f"{WALK}_000026.jpg"
    cubes = [human.read(item) for item in items]
    assert {label for cube in cubes for label in cube["sequence"].values} == {f"train/{WALK}/1"}
    assert all(cube.nbytes < 1.1 * ITEM_BYTES for cube in cubes)


def test_names_of_items_differ(tmp_path):
    write(tmp_path, {"train": [(WALK, 1, 36), (WALK, 2, 37), (TALK, 1, 36)]})
    names = [str(item) for item in human.find(tmp_path)]
    assert len(set(names)) == 3


def test_items_of_damaged_pictures_are_cut_for_the_largest_size(tmp_path):
    most = human._most(jpeg(tmp_path / "a.jpg", np.zeros((30, 50, 3))))
    assert most == human._most(jpeg(tmp_path / "b.jpg", np.zeros((30, 50, 3)), progressive=True)) == human.LONGEST
    for content in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x00" * 9, b"\x89PNG"):
        (tmp_path / "c.jpg").write_bytes(content)
        assert human._most(tmp_path / "c.jpg") == ITEM_BYTES // (12 * 1002 * 1000)


def test_a_missing_picture_is_named(tmp_path):
    root = write(tmp_path, {"train": [(WALK, 1, 36)]})
    (item,) = human.find(tmp_path)
    (root / "images" / f"{WALK}_000016.jpg").unlink()
    with pytest.raises(BadInput, match=r"_000016\.jpg: does not exist"):
        human.read(item)
    (root / "images" / f"{WALK}_000001.jpg").unlink()  # the one that tells the size
    assert [item.key for item in human.find(tmp_path)] == ["train:1:1-21", "train:1:26-36"]


def test_a_picture_of_both_lists_is_named(tmp_path):
    write(tmp_path, {"train": [(WALK, 1, 36)], "test": [(WALK, 2, 37), (WALK, 36, 71)]})
    with pytest.raises(BadInput, match=r"54138969_000036\.jpg: is in clips of train\.txt and of test\.txt"):
        list(human.find(tmp_path))


@pytest.mark.parametrize(
    ("picture", "fault"),
    [
        (np.zeros((10, 10, 3)), r"_000006\.jpg: has 10x10 pixels, .*_000001\.jpg 24x32"),
        (np.zeros((24, 32)), r"_000006\.jpg: is a JPEG of mode L, not RGB"),
    ],
)
def test_refuses_a_picture_that_differs(tmp_path, picture, fault):
    root = write(tmp_path, {"train": [(WALK, 1, 11)]})
    jpeg(root / "images" / f"{WALK}_000006.jpg", picture)
    with pytest.raises(BadInput, match=fault):
        sequences(tmp_path)


def test_refuses_pictures_that_are_larger_than_the_first_of_all(tmp_path):
    root = write(tmp_path, {"train": [(TALK, 1, 1), (WALK, 1, 36)]})
    (item, first) = human.find(tmp_path)
    assert first.path.name.startswith("S11")
    data = bytearray(item.path.read_bytes())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 9000, 9000)
    (root / "images" / item.path.name).write_bytes(bytes(data))
    with pytest.raises(BadInput, match="has 9000x9000 pixels, more than its data set allows"):
        human.read(item)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "lists no clips"),
        ("images/S1_Walking.54138969_,226", "has no clip in line 1"),
        ("\nimages/S1_Walking.54138969_,30,20", "has no clip in line 2"),
        ("images/S1_Walking.54138969_,1,99999", "has no clip in line 1"),
        ("../../S1_Walking.54138969_,1,9", "has no clip in line 1"),
        ("/S1_Walking.54138969_,1,9", "has no clip in line 1"),
        ("\xff", "has no clip in line 1"),
    ],
)
def test_refuses_other_lists(tmp_path, text, fault):
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(BadInput, match=rf"train\.txt: {fault}"):
        list(human.find(tmp_path))


def test_recognises_its_own(tmp_path):
    root = write(tmp_path, {"train": [(WALK, 1, 6)]})
    assert human.recognises(root / "train.txt")
    assert human.recognises(root / "images" / f"{WALK}_000001.jpg")
    (tmp_path / "train.txt").write_text("a list of other things\n")
    assert not human.recognises(tmp_path / "train.txt")
    assert not human.recognises(tmp_path / "S1.jpg")


@pytest.mark.parametrize("key", ["", "train:1:6-1", "valid:1:1-6", "train:1:1-99999", "train:1:6-11"])
def test_refuses_parts_that_are_none(tmp_path, key):
    root = write(tmp_path, {"train": [(WALK, 1, 6)]})
    with pytest.raises(BadInput, match="has no part"):
        human.read(Item(root / "images" / f"{WALK}_000001.jpg", key))


def test_a_folder_without_lists_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(BadInput, match=f"{tmp_path}: holds no train.txt or test.txt"):
        list(human.find(tmp_path))
