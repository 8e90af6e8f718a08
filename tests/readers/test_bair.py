import numpy as np
import pytest
from PIL import Image

from nowcast.core.errors import BadInput
from nowcast.core.grid import Grid
from nowcast.readers import Item, bair
from tests import sources_video
from tests.sources_video import coloured, example, records, trajectory

COLOURS = ("red", "green", "blue")


def noise(frames: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 64, 64, 3), np.uint8)


def everything(source) -> list:
    return [bair.read(item) for item in bair.find(source)]


def colours(cube) -> np.ndarray:
    """(time, y, x, colour) uint8."""
    return np.rint(np.stack([cube[colour].values for colour in COLOURS], axis=-1) * 255).astype(np.uint8)


def test_record_becomes_a_clip(tmp_path):
    clips = [noise(30, 1), noise(30, 2)]
    path = records(tmp_path / "test" / "traj_0_to_255.tfrecords", map(trajectory, clips))
    (cube,) = everything(path)
    np.testing.assert_array_equal(colours(cube), np.concatenate(clips))
    assert cube["red"].values[0, 0, 0] == np.float32(clips[0][0, 0, 0, 0] / 255)
    assert np.unique(cube["sequence"]).tolist() == ["test/traj_0_to_255/0", "test/traj_0_to_255/1"]
    seconds = cube["time"].values.astype("datetime64[s]").astype(int)
    assert seconds.tolist() == list(range(30)) * 2
    assert not Grid.of(cube).on_earth and Grid.of(cube).shape == (64, 64)


def test_frames_are_ordered_by_number(tmp_path):
    frames = noise(12)
    # "10" sorts before "2" as text, and a map has no order
    content = trajectory(frames[[10, 2, 0, 11, 1, 3, 9, 8, 4, 7, 5, 6]], numbers=[10, 2, 0, 11, 1, 3, 9, 8, 4, 7, 5, 6])
    (cube,) = everything(records(tmp_path / "traj_0_to_255.tfrecords", [content]))
    np.testing.assert_array_equal(colours(cube), frames)
    assert "split" not in cube.coords  # outside train and test nothing says what it is for
    assert cube["sequence"].values[0] == "traj_0_to_255/0"


@pytest.mark.parametrize(
    ("place", "split"),
    [
        ("train/traj_0_to_255", "train"),
        ("train/traj_256_to_511", "valid"),
        ("test/traj_256_to_511", "test"),
    ],
)
def test_split(tmp_path, place, split):
    path = records(tmp_path / f"{place}.tfrecords", [trajectory(coloured(2))])
    (cube,) = everything(path)
    assert (cube["split"] == split).all()
    assert cube["sequence"].values[0] == f"{place}/0"


EXAMPLE = """
name: "example.proto" package: "t"
message_type { name: "BytesList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "FloatList"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT options { packed: true } } }
message_type { name: "Feature"
  field { name: "bytes_list" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".t.BytesList" }
  field { name: "float_list" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".t.FloatList" } }
message_type { name: "Features"
  field { name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".t.Features.FeatureEntry" }
  nested_type { name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".t.Feature" } } }
message_type { name: "Example"
  field { name: "features" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".t.Features" } }
"""
"""tensorflow/core/example/{feature,example}.proto, without integers."""


def test_framing_and_message_agree_with_other_libraries(tmp_path):
    """Records by TensorBoard, messages by Google's library for protocol buffers."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
    from tensorboard.summary.writer.record_writer import RecordWriter

    pool = descriptor_pool.DescriptorPool()
    definition = text_format.Parse(EXAMPLE, descriptor_pb2.FileDescriptorProto())
    pool.AddSerializedFile(definition.SerializeToString())
    Example = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))
    clips = [noise(30, 1), noise(7, 2)]
    path = tmp_path / "train" / "traj_0_to_255.tfrecords"
    path.parent.mkdir()
    with path.open("wb") as stream:
        writer = RecordWriter(stream)
        for clip in clips:
            record = Example()
            for place, frame in enumerate(clip):
                feature = record.features.feature
                feature[f"{place}/image_aux1/encoded"].bytes_list.value.append(frame.tobytes())
                feature[f"{place}/image_main/encoded"].bytes_list.value.append(bytes(frame.nbytes))
                feature[f"{place}/action"].float_list.value.extend([0.25] * 4)
            writer.write(record.SerializeToString())
        writer.flush()
    (cube,) = everything(path)
    np.testing.assert_array_equal(colours(cube), np.concatenate(clips))


def test_a_large_file_is_read_in_parts(tmp_path):
    clips = [noise(2, seed) for seed in range(50)]
    path = records(tmp_path / "train" / "traj_512_to_767.tfrecords", map(trajectory, clips))
    items = list(bair.find(path))
    assert [item.key for item in items] == ["0:45", "45:50"]
    cube = bair.read(items[1])
    np.testing.assert_array_equal(colours(cube), np.concatenate(clips[45:]))
    assert cube["sequence"].values[0] == "train/traj_512_to_767/45"


def _damaged(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda content: content[:-1], "ends inside the record at byte 0"),
        (lambda content: content[:11], "damaged at byte 0 or holds no records"),
        (lambda content: content + b"x", f"damaged at byte {16 + len(trajectory(coloured(2)))} or"),
        (lambda content: _damaged(content, 0), "damaged at byte 0"),
        (lambda content: _damaged(content, 9), "damaged at byte 0"),
        (lambda content: _damaged(content, 5000), "damaged in the record at byte 12"),
        (lambda content: _damaged(content, len(content) - 1), "damaged in the record at byte 12"),
    ],
)
def test_refuses_damage(tmp_path, change, fault):
    path = records(tmp_path / "traj_0_to_255.tfrecords", [trajectory(coloured(2))])
    path.write_bytes(change(path.read_bytes()))
    items = list(bair.find(path))
    with pytest.raises(BadInput, match=rf"traj_0_to_255\.tfrecords.*: .*{fault}"):
        bair.read(items[0] if "at byte 12" in fault else Item(path, "0:1"))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "without pictures or with gaps"),
        (example({"0/image_main/encoded": bytes(12_288)}), "without pictures or with gaps"),
        (trajectory(coloured(2), numbers=[0, 2]), "without pictures or with gaps"),
        (example({"0/image_aux1/encoded": bytes(12_287)}), "damaged or not a file of BAIR"),
        (example({"0/image_aux1/encoded": (1.0, 2.0)}), "damaged or not a file of BAIR"),
        (
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            "damaged or not a file of BAIR",
        ),  # a number without an end
        (b"\x0a\x05abc", "damaged or not a file of BAIR"),  # five bytes announced, three there
        (b"\x0b", "damaged or not a file of BAIR"),  # a group, which went out of use
    ],
)
def test_refuses_other_records(tmp_path, content, fault):
    path = records(tmp_path / "traj_0_to_255.tfrecords", [content])
    with pytest.raises(BadInput, match=fault):
        bair.read(Item(path, "0:1"))


def test_refuses_a_record_of_any_size(tmp_path):
    path = records(tmp_path / "traj_0_to_255.tfrecords", [bytes(2**21 + 1)])
    with pytest.raises(BadInput, match="damaged at byte 0 or holds no records"):
        bair.read(Item(path, "0:1"))


def test_refuses_records_that_are_not_there(tmp_path):
    path = records(tmp_path / "traj_0_to_255.tfrecords", [trajectory(coloured(2))])
    with pytest.raises(BadInput, match="holds 1 trajectories, not 2"):
        bair.read(Item(path, "0:2"))


def test_other_fields_are_passed_over():
    message = b"\x08\x96\x01" + b"\x11" + bytes(8) + b"\x1d" + bytes(4) + b"\x22\x02ab"  # numbers 1 to 4, a type each
    assert [bytes(field) for field in bair._fields(memoryview(message), 4)] == [b"ab"]
    assert list(bair._fields(memoryview(message), 1)) == []


# --- converted folders ----------------------------------------------------------------------------


def converted(root, place: str, clips: dict[str, np.ndarray]):
    for name, frames in clips.items():
        folder = root / "processed_data" / place / name
        folder.mkdir(parents=True)
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"{number}.png")
    return root / "processed_data" / place


def test_folders_of_pictures(tmp_path):
    clips = {"2": noise(12, 2), "10": noise(3, 10)}
    converted(tmp_path, "train/traj_512_to_767", clips)
    converted(tmp_path, "test/traj_0_to_255", {"1": noise(2, 1)})
    first, second = everything(tmp_path)
    assert first["sequence"].values[0] == "test/traj_0_to_255/1"
    np.testing.assert_array_equal(colours(second), np.concatenate([clips["2"], clips["10"]]))  # 2 before 10, twice
    assert np.unique(second["sequence"]).tolist() == ["train/traj_512_to_767/10", "train/traj_512_to_767/2"]
    assert (second["split"] == "train").all() and (first["split"] == "test").all()


def test_one_folder_or_picture(tmp_path):
    clips = {"2": noise(2, 2), "10": noise(3, 10)}
    folder = converted(tmp_path, "train/traj_512_to_767", clips)
    for source in (folder / "10", folder / "10" / "0.png"):
        (cube,) = everything(source)
        np.testing.assert_array_equal(colours(cube), clips["10"])
        assert cube["sequence"].values[0] == "train/traj_512_to_767/10"
    assert bair.recognises(folder / "10" / "0.png")


def test_pictures_of_others_are_not_taken(tmp_path):
    path = tmp_path / "sample1" / "1" / "0.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(noise(1)[0]).save(path)
    assert not bair.recognises(path)


def test_records_go_before_pictures(tmp_path):
    converted(tmp_path, "train/traj_0_to_255", {"0": noise(2)})
    path = records(tmp_path / "softmotion30_44k" / "train" / "traj_0_to_255.tfrecords", [trajectory(coloured(2))])
    assert [item.path for item in bair.find(tmp_path)] == [path]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda folder: (folder / "1.png").unlink(), "lacks 1.png"),
        (lambda folder: Image.new("L", (64, 64)).save(folder / "1.png"), "64x64 pixels of mode L, not 64x64 of RGB"),
        (lambda folder: Image.new("RGB", (64, 32)).save(folder / "1.png"), "32x64 pixels of mode RGB"),
        (lambda folder: (folder / "1.png").write_bytes(b"x"), "1.png.*damaged or not a PNG image"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "lacks 0.png"),
    ],
)
def test_refuses_pictures(tmp_path, change, fault):
    folder = converted(tmp_path, "train/traj_0_to_255", {"0": noise(3)})
    items = list(bair.find(folder))
    change(folder / "0")
    with pytest.raises(BadInput, match=fault):
        bair.read(items[0])


def test_the_fixture_is_what_the_reader_says_it_reads(tmp_path):
    labels = [cube["sequence"].values[0] for cube in everything(sources_video.SOURCES["bair"](tmp_path))]
    assert labels == ["test/traj_0_to_255/0", "train/traj_0_to_255/0", "train/traj_256_to_511/0"]
