"""Conversion from and to other systems: import of official weights, export as ``torch.export`` program or ONNX."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from nowcast.config import ScalingSettings
from nowcast.core import units
from nowcast.core.errors import BadInput, MissingExtra
from nowcast.core.files import atomic_file
from nowcast.core.version import code_version
from nowcast.models import Nowcaster, official
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Card

OPSET = 20
"""Version of ONNX's operators; the first with the bilinear sampling that extrapolating networks need."""
TOLERANCE = 1e-3
"""Largest difference between the frames, in [0, 1], of an exported network and its original."""


def import_official(
    source: str,
    path: Path,
    out: Path,
    *,
    config: Mapping[str, object] | None = None,
    quantity: str = "intensity",
    cadence_seconds: int = 1,
) -> Path:
    """Convert a file of official weights to a checkpoint.

    Args:
        source: Code base and network, a key of ``nowcast.models.official.SOURCES``.
        path: ``.pt``, ``.pth``, ``.ckpt`` (read without running code), ``.safetensors``, or ``.npz`` of named arrays.
        out: Checkpoint to write.
        config: Settings that do not follow from shapes, as the official code names them: ``{"T_in": 10}``.
        quantity: Quantity of the frames, with its default scaling: official weights do not state it.
        cadence_seconds: Time between frames.

    Returns:
        ``out``.

    Raises:
        BadInput: If the file holds no weights of this source.
        OptionError: If the source is unknown.
    """
    official.find(source)
    weights = read_weights(path)
    try:
        name, settings, network = official.build(source, weights, config)
    except ValueError as error:
        raise BadInput(path, str(error).rstrip("."), "name its source, and its config as key=value") from error
    scaling = ScalingSettings.model_validate(vars(units.get_quantity(quantity).scaling))
    steps = {key: settings.pop(key) for key in ("in_steps", "out_steps", "channels")}
    card = Card(
        model=name,
        options=settings,
        **steps,
        quantity=quantity,
        scaling=scaling,
        cadence_seconds=cadence_seconds,
        code_version=code_version(),
        training={
            "imported_from": path.name,
            "source": source,
            "digest": checkpoint.file_digest(path),
            "licence": network.LICENCE,
        },
        created=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    )
    return checkpoint.save(out, network, card)


def read_weights(path: Path) -> Mapping[str, Any]:
    """Read the named tensors of a file, or the checkpoint that contains them.

    Raises:
        BadInput: If there are none, or if reading them would run the file's code.
    """
    try:
        match path.suffix:
            case ".safetensors":
                return load_file(path)
            case ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    return {name: torch.from_numpy(arrays[name]) for name in arrays}
            case _:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Detected pickle protocol")  # a failure is an error anyway
                    found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(path, "no such file", "give the file of weights") from None
    except pickle.UnpicklingError:
        remedy = 'where you trust it: torch.save(torch.load(file, weights_only=False)["state_dict"], "weights.pt")'
        raise BadInput(path, "holds more than tensors, and reading that could run code", remedy) from None
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError, zipfile.BadZipFile) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise BadInput(path, f"holds no weights ({why})", "give the file of weights") from None
    if not isinstance(found, Mapping):
        raise BadInput(path, f"holds a {type(found).__name__}, not named tensors", "save the state dict alone")
    return found


def export(network: Nowcaster, out: Path, *, size: tuple[int, int]) -> Path:
    """Export a network for other runtimes, and compare both on random frames.

    Args:
        network: In evaluation mode.
        out: ``.onnx`` (needs the extra ``onnx``) or ``.pt2`` (``torch.export``).
        size: Height and width of the frames: an exported program is made for one shape.

    Returns:
        ``out``.

    Raises:
        BadInput: Another suffix; a network that cannot be exported; a program that computes something else.
        MissingExtra: If ONNX is not installed.
    """
    if out.suffix not in (".onnx", ".pt2"):
        raise BadInput(out, "is neither .onnx nor .pt2", "choose one of them")
    if out.suffix == ".onnx" and not network.onnx:
        raise BadInput(out, f"{type(network).__name__} holds an operator that ONNX does not know", "export it as .pt2")
    shape = (1, network.in_steps, network.channels, *size)
    past = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    network = network.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    write = {".onnx": _onnx, ".pt2": _program}[out.suffix]
    with atomic_file(out) as aside:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # exporters warn about their own code
            exported = write(network, past, aside)
            original = network(past)
            both_missing = exported.isnan() & original.isnan()
            worst = float((exported - original).masked_fill(both_missing, 0.0).abs().max())
        if not worst <= TOLERANCE:
            raise BadInput(out, f"differs from {type(network).__name__} by {worst:.2g}", "report it; nothing is kept")
    return out


def _program(network: Nowcaster, past: torch.Tensor, out: Path) -> torch.Tensor:
    program = torch.export.export(network, (past,))
    torch.export.save(program, out)
    future: torch.Tensor = torch.export.load(out).module()(past)
    return future


def _onnx(network: Nowcaster, past: torch.Tensor, out: Path) -> torch.Tensor:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  needed by the exporter
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{error.name} is missing: pip install 'nowcast-radar[onnx]'") from None
    program = torch.onnx.export(
        network, (past,), dynamo=True, opset_version=OPSET, input_names=["past"], output_names=["future"], verbose=False
    )
    assert program is not None
    program.save(out)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"past": past.numpy()})[0])
