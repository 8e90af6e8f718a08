"""Official weights become checkpoints; networks become programs of other runtimes that compute the same."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nowcast.core.errors import BadInput
from nowcast.models import MODELS, build, model_class
from nowcast.models.official import SOURCES, load
from nowcast.registry import checkpoint, convert
from tests import parity_pack

each_network = pytest.mark.parametrize("name", [name for name in MODELS if model_class(name).trainable])


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return parity_pack.read("sa_convlstm").weights()


CONFIG = {"input_frames": 6, "future_frames": 4}


@pytest.mark.parametrize("suffix", [".pt", ".pth.tar", ".ckpt", ".safetensors", ".npz"])
def test_official_weights_become_a_checkpoint(suffix: str, weights: dict, tmp_path: Path) -> None:
    file, out = tmp_path / f"official{suffix}", tmp_path / "ours.safetensors"
    match suffix:
        case ".safetensors":
            save_file(weights, file)
        case ".npz":
            np.savez(file, **{name: tensor.numpy() for name, tensor in weights.items()})
        case _:
            torch.save({"epoch": 7, "state_dict": {f"module.{name}": value for name, value in weights.items()}}, file)
    convert.import_official("sa_convlstm", file, out, config=CONFIG, quantity="rainfall_rate", cadence_seconds=300)
    model, past = checkpoint.load(out), torch.rand(1, 6, 1, 20, 24)
    assert (model.name, model.quantity, model.cadence_seconds) == ("sa-convlstm", "rainfall_rate", 300)
    assert checkpoint.read_card(out).training["imported_from"] == file.name
    with torch.inference_mode():
        torch.testing.assert_close(model.network(past), load("sa_convlstm", weights, CONFIG)(past))


def test_a_tensorflow_checkpoint_comes_in_as_its_named_arrays(tmp_path: Path) -> None:
    """All variables of E3D-LSTM's checkpoint, as the how-to saves them: Adam's and averages too, which have no use."""
    weights = {name: tensor.numpy() for name, tensor in parity_pack.read("e3d_lstm").weights().items()}
    averages = {f"{name}/ExponentialMovingAverage": np.zeros(1, np.float32) for name in list(weights)[:3]}
    other = {"Variable": np.float32(1), "Variable_17": np.zeros(3, np.float32), "global_step": np.int64(5)}
    np.savez(tmp_path / "e3d_lstm.npz", **weights, **averages, **other)
    out = convert.import_official("e3d_lstm", tmp_path / "e3d_lstm.npz", tmp_path / "ours.safetensors")
    assert checkpoint.read_card(out).options["stale_memory"] is True


def test_every_source_names_a_network_of_the_table() -> None:
    from nowcast.models.official import find

    classes = {model_class(name) for name in MODELS}
    assert {find(source).model for source in SOURCES} <= classes


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "no such file"),
        (b"", "holds no weights"),
        (b"weights", "holds"),
        (pickle.dumps(Path("/etc")), "holds more than tensors"),
        (torch.zeros(3), "holds a Tensor, not named tensors"),
        ({"embed.weight": torch.zeros(3)}, "not one of sa_convlstm: it misses"),
    ],
)
def test_files_without_such_weights_are_refused(content: object, fault: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(BadInput, match=fault):
        convert.import_official("sa_convlstm", file, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_unknown_source_is_said_before_the_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown source 'prednet'; known: "):
        convert.import_official("prednet", tmp_path / "none.pt", tmp_path / "out.safetensors")


def network(name: str, *, out_steps: int = 2) -> torch.nn.Module:
    torch.manual_seed(1)
    return build(f"{name}:debug", in_steps=2, out_steps=out_steps).eval()


@each_network
def test_exported_program_computes_the_same(name: str) -> None:
    past = torch.rand(1, 2, 1, 16, 24)
    with torch.no_grad():
        program = torch.export.export(network(name), (past,))
        torch.testing.assert_close(program.module()(past), network(name)(past), equal_nan=True)


@pytest.mark.slow
@each_network
def test_onnx_computes_the_same(name: str, tmp_path: Path) -> None:
    if not model_class(name).onnx:
        with pytest.raises(BadInput, match="an operator that ONNX does not know"):
            convert.export(network(name), tmp_path / "network.onnx", size=(16, 24))
        return
    made = convert.export(network(name), tmp_path / "network.onnx", size=(16, 24))
    assert [path.name for path in tmp_path.iterdir()] == [made.name]


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_export_writes_one_file_checked_against_ours(suffix: str, tmp_path: Path) -> None:
    made = convert.export(network("convlstm"), tmp_path / f"network{suffix}", size=(24, 20))
    assert [path.name for path in tmp_path.iterdir()] == [made.name]


def test_export_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_program", lambda network, past, out: torch.tensor(torch.nan))
    with pytest.raises(BadInput, match="differs from ConvLSTM by nan"):
        convert.export(network("convlstm"), tmp_path / "network.pt2", size=(24, 20))
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadInput, match=r"is neither \.onnx nor \.pt2"):
        convert.export(network("convlstm"), tmp_path / "network.tflite", size=(24, 20))
