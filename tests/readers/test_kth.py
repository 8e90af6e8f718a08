import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from nowcast.core.errors import BadInput
from nowcast.readers import Item, kth
from nowcast.readers.items import ITEM_BYTES
from tests.sources_clips import jpeg, kth_folder, kth_frame, kth_list, kth_video


def labels(cube) -> list[str]:
    return [label.rpartition("/")[2] for label in cube["sequence"].values]


def numbers(cube) -> list[int]:
    return cube["time"].values.astype("datetime64[s]").astype(int).tolist()


def only(source: Path):
    (item,) = kth.find(source)
    return kth.read(item)


# --- pictures -------------------------------------------------------------------------------------


def test_pictures_become_intensities(tmp_path):
    folder = kth_folder(tmp_path, [3, 4])
    cube = only(tmp_path)
    for index, number in enumerate((3, 4)):
        decoded = cv2.imread(str(folder / f"image_{number:04}.jpg"))[..., 2]  # OpenCV puts red last
        np.testing.assert_allclose(cube["intensity"].values[index] * 255, decoded, atol=1)
        np.testing.assert_allclose(cube["intensity"].values[index] * 255, kth_frame(number), atol=2)
    assert numbers(cube) == [3, 4]
    assert set(cube["sequence"].values) == {"train/boxing/person01_boxing_d1/3"}
    assert cube["y"].values[[0, -1]].tolist() == [119.5, 0.5]  # row 0 on top


def test_the_first_channel_is_taken(tmp_path):
    levels = np.stack([np.full((16, 16), 200), np.full((16, 16), 100), np.full((16, 16), 50)], axis=-1)
    folder = tmp_path / "person03_running_d1"
    jpeg(folder / "image_0001.jpg", levels)
    jpeg(folder / "image_0002.jpg", np.full((16, 16), 77))  # grey as such
    np.testing.assert_allclose(only(folder)["intensity"].values[:, 8, 8] * 255, [200, 77], atol=2)


def test_a_gap_begins_a_new_sequence(tmp_path):
    kth_folder(tmp_path, [1, 2, 7, 8, 9, 257])
    cube = only(tmp_path)
    assert numbers(cube) == [1, 2, 7, 8, 9, 257]
    assert labels(cube) == ["1", "1", "7", "7", "7", "257"]


@pytest.mark.parametrize(("person", "split"), [("01", "train"), ("16", "train"), ("17", "test"), ("25", "test")])
def test_people_are_divided_as_in_predrnn(tmp_path, person, split):
    kth_folder(tmp_path, [1, 2], clip=f"person{person}_handwaving_d4")
    cube = only(tmp_path)
    assert set(cube["split"].values) == {split}
    assert set(cube["sequence"].values) == {f"{split}/handwaving/person{person}_handwaving_d4/1"}


def test_long_runs_are_cut_and_keep_their_label(tmp_path):
    folder = kth_folder(tmp_path, [1])
    for number in range(2, 401):
        (folder / f"image_{number:04}.jpg").write_bytes((folder / "image_0001.jpg").read_bytes())
    items = list(kth.find(tmp_path))
    assert [item.key for item in items] == ["person01_boxing_d1_uncomp/1:1-256", "person01_boxing_d1_uncomp/1:257-400"]
    assert items[1].path.name == "image_0257.jpg"
    cubes = [kth.read(item) for item in items]
    assert [numbers(cube)[0] for cube in cubes] == [1, 257]
    assert set(labels(cubes[0]) + labels(cubes[1])) == {"1"}
    assert all(cube.nbytes < 1.1 * ITEM_BYTES for cube in cubes)


def test_clips_have_items_of_different_names(tmp_path):
    for clip in ("person01_boxing_d1_uncomp", "person02_boxing_d1_uncomp", "person10_boxing_d1_uncomp"):
        kth_folder(tmp_path, [1], clip=clip)
    names = [str(item) for item in kth.find(tmp_path)]
    assert names == sorted(set(names))
    assert names[0] == "image_0001.jpg[person01_boxing_d1_uncomp/1:1-1]"


def test_a_source_may_be_a_picture_or_a_clip(tmp_path):
    folder = kth_folder(tmp_path, [1, 2, 3])
    assert numbers(only(folder)) == [1, 2, 3]
    assert numbers(only(folder / "image_0002.jpg")) == [2]


def test_a_missing_picture_is_named(tmp_path):
    folder = kth_folder(tmp_path, [1, 2, 3])
    (item,) = kth.find(tmp_path)
    (folder / "image_0002.jpg").unlink()
    with pytest.raises(BadInput, match=r"image_0002\.jpg: does not exist"):
        kth.read(item)


@pytest.mark.parametrize(
    ("mode", "size", "fault"),
    [
        ("RGB", (80, 60), "has 60x80 pixels, image_0001.jpg 120x160"),
        ("CMYK", (160, 120), "is a JPEG of mode CMYK"),
    ],
)
def test_refuses_a_picture_that_differs(tmp_path, mode, size, fault):
    Image.new(mode, size).save(kth_folder(tmp_path, [1, 2]) / "image_0002.jpg")
    with pytest.raises(BadInput, match=rf"image_0002\.jpg: {fault}"):
        only(tmp_path)


def test_refuses_large_pictures(tmp_path):
    folder = kth_folder(tmp_path, [1])
    data = bytearray((folder / "image_0001.jpg").read_bytes())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 60_000, 60_000)  # what the header claims
    (folder / "image_0001.jpg").write_bytes(bytes(data))
    with pytest.raises(BadInput, match=r"image_0001\.jpg"):
        only(tmp_path)


# --- videos ---------------------------------------------------------------------------------------


def clip(root: Path, frames: int = 12, name: str = "person01_boxing_d1", **options: object) -> Path:
    return kth_video(root / "boxing" / f"{name}_uncomp.avi", frames, **options)


def test_a_video_without_a_list_is_one_sequence(tmp_path):
    clip(tmp_path, 30)
    cube = only(tmp_path)
    assert numbers(cube) == list(range(1, 31))
    assert set(cube["sequence"].values) == {"train/boxing/person01_boxing_d1/1"}
    levels = np.stack([kth_frame(number) for number in range(1, 31)])
    np.testing.assert_allclose(cube["intensity"].values * 255, levels, atol=6)


def test_levels_are_those_that_opencv_sees(tmp_path):
    video = cv2.VideoCapture(str(clip(tmp_path, 10)))
    cube = only(tmp_path)
    for index in range(10):
        there, frame = video.read()
        assert there
        np.testing.assert_allclose(cube["intensity"].values[index] * 255, frame[..., 2], atol=2)


@pytest.mark.parametrize("folder", [".", "boxing"])
def test_listed_ranges_are_sequences(tmp_path, folder):
    clip(tmp_path, 20)
    clip(tmp_path, 4, "person02_boxing_d1")  # which the list does not name
    kth_list(
        tmp_path / folder / "00sequences.txt",
        {"person01_boxing_d1": "1-4, 15-18, 9-11, 11-13", "person13_handclapping_d3": " "},
    )
    first, second = map(kth.read, kth.find(tmp_path))
    # as in the published list, ranges may share a frame and are in no order
    assert numbers(first) == [1, 2, 3, 4, 9, 10, 11, 11, 12, 13, 15, 16, 17, 18]
    assert labels(first) == ["1"] * 4 + ["9"] * 3 + ["11"] * 3 + ["15"] * 4
    np.testing.assert_allclose(first["intensity"].values[4] * 255, kth_frame(9), atol=6)
    assert labels(second) == ["1"] * 4


def test_videos_and_pictures_agree(tmp_path):
    path = clip(tmp_path / "a", 6)
    video = cv2.VideoCapture(str(path))
    for number in range(1, 7):
        jpeg(tmp_path / "b" / path.stem / f"image_{number:04}.jpg", video.read()[1][..., ::-1])
    film, pictures = only(tmp_path / "a"), only(tmp_path / "b")
    assert film["sequence"].equals(pictures["sequence"]) and film["time"].equals(pictures["time"])
    np.testing.assert_allclose(film["intensity"], pictures["intensity"], atol=4 / 255)


def test_a_long_video_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(kth, "ITEM_BYTES", 10 * 4 * 120 * 160)
    path = clip(tmp_path, 25)
    items = list(kth.find(path))
    assert [item.key for item in items] == ["1:1-10", "1:11-20", "1:21-"]
    cubes = [kth.read(item) for item in items]
    assert [len(numbers(cube)) for cube in cubes] == [10, 10, 5]
    assert {label for cube in cubes for label in labels(cube)} == {"1"}
    np.testing.assert_allclose(cubes[2]["intensity"].values[0] * 255, kth_frame(21), atol=6)


def counted(path: Path, frames: int) -> Path:
    """Changes what the header of an AVI counts, in both places."""
    data = bytearray(path.read_bytes())
    data[48:52] = struct.pack("<I", frames)
    place = data.index(b"strh") + 8 + 32
    data[place : place + 4] = struct.pack("<I", frames)
    path.write_bytes(bytes(data))
    return path


def test_a_header_that_counts_too_few_loses_nothing(tmp_path, monkeypatch):
    assert len(numbers(only(counted(clip(tmp_path, 25), 0)))) == 25
    monkeypatch.setattr(kth, "ITEM_BYTES", 10 * 4 * 120 * 160)
    with pytest.raises(BadInput, match="holds more frames than the"):
        only(counted(clip(tmp_path, 25), 8))


def test_a_header_that_counts_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(kth, "ITEM_BYTES", 40 * 4 * 120 * 160)
    first, second = kth.find(counted(clip(tmp_path, 30), 60))
    for item in (first, second):
        with pytest.raises(BadInput, match="ends after 30 of 60 frames; fetch it again"):
            kth.read(item)
    assert len(list(kth.find(counted(clip(tmp_path, 30), 2**32 - 1)))) == 1


def test_some_frames_may_be_kept_back_by_the_codec(tmp_path):
    path = counted(clip(tmp_path, 30), 32)
    assert len(numbers(only(path))) == 30
    kth_list(path.parent / "00sequences.txt", {"person01_boxing_d1": "1-10, 20-32, 40-50"})
    assert labels(only(path)) == ["1"] * 10 + ["20"] * 11


def test_ranges_beyond_the_video_are_refused(tmp_path):
    path = clip(tmp_path, 5)
    kth_list(path.parent / "00sequences.txt", {"person01_boxing_d1": "10-20"})
    with pytest.raises(BadInput, match="has no frame of 10:10-20"):
        only(path)


@pytest.mark.parametrize("text", ["0-5", "9-5", "1-1000000"])
def test_refuses_a_list_of_impossible_ranges(tmp_path, text):
    path = clip(tmp_path, 5)
    kth_list(path.parent / "00sequences.txt", {"person01_boxing_d1": text})
    with pytest.raises(BadInput, match=f"00sequences.txt: lists frames {text} of person01_boxing_d1"):
        list(kth.find(path))


def test_refuses_a_huge_list(tmp_path):
    path = clip(tmp_path, 5)
    (path.parent / "00sequences.txt").write_bytes(b"\n" * 2_000_000)
    with pytest.raises(BadInput, match="too large"):
        list(kth.find(path))


def test_refuses_another_size(tmp_path):
    with pytest.raises(BadInput, match="has 48x64 pixels, not 120x160"):
        only(clip(tmp_path, shape=(48, 64)))


def test_refuses_sound_alone(tmp_path):
    import av

    path = tmp_path / "person01_boxing_d1_uncomp.avi"
    with av.open(str(path), "w", format="avi") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        for packet in [*stream.encode(sound), *stream.encode()]:
            file.mux(packet)
    with pytest.raises(BadInput, match="holds no video"):
        only(path)


def test_damaged_videos_give_a_cube_or_a_refusal(tmp_path):
    path = clip(tmp_path, 30)
    good, rng = path.read_bytes(), np.random.default_rng(1)
    for attempt in range(60):
        bad = bytearray(good)
        if attempt % 3:
            for place in rng.integers(len(bad) if attempt % 2 else 2000, size=10):
                bad[place] = rng.integers(256)
        else:
            del bad[rng.integers(len(bad)) :]
        path.write_bytes(bytes(bad))
        try:
            assert only(path).sizes["time"] <= 900
        except BadInput as refusal:
            assert path.name in str(refusal) and "\n" not in str(refusal)


def test_videos_need_their_library(tmp_path, monkeypatch):
    path = clip(tmp_path, 3)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (item,) = kth.find(path)  # not yet
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'nowcast-radar\[video\]'"):
        kth.read(item)


# --- both -----------------------------------------------------------------------------------------


def test_recognises_its_own(tmp_path):
    assert kth.recognises(clip(tmp_path, 3))
    assert kth.recognises(kth_folder(tmp_path, [1]) / "image_0001.jpg")
    assert not kth.recognises(jpeg(tmp_path / "film" / "image_0001.jpg", np.zeros((9, 9))))
    other = tmp_path / "person01_boxing_d1_uncomp.avi"
    other.write_bytes(b"RIFF....WAVE")
    assert not kth.recognises(other)


def test_refuses_both_forms_at_once(tmp_path):
    clip(tmp_path, 3)
    kth_folder(tmp_path, [1])
    with pytest.raises(BadInput, match="holds KTH as videos and as pictures; name the folder of one"):
        list(kth.find(tmp_path))


@pytest.mark.parametrize("key", ["", "x", "1:1-2,", "1:1-900", "1:5-1:", "²:1-2"])
def test_refuses_parts_that_are_none(tmp_path, key):
    with pytest.raises(BadInput, match=r"has no (part|frame)"):
        kth.read(Item(clip(tmp_path, 3), key))


def test_refuses_a_clip_of_another_name(tmp_path):
    path = jpeg(tmp_path / "film" / "image_0001.jpg", np.zeros((9, 9)))
    with pytest.raises(BadInput, match="is not of a clip such as person01_boxing_d1"):
        kth.read(Item(path, "1:1-1"))
    with pytest.raises(BadInput, match=f"{tmp_path}: holds neither person01_boxing_d1_uncomp.avi nor"):
        list(kth.find(tmp_path))
