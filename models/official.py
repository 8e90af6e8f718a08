"""Weights of the official implementations, loaded into our networks.

    model = load("convlstm_ef", torch.load("checkpoint_96_0.001.pth.tar", weights_only=True))

One line of ``SOURCES`` per official code base. The scale of the network is read from the tensors;
what shapes cannot tell comes from ``config``, in the words of the official code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from models.convlstm import ConvGRU, ConvLSTM
from models.nowcaster import Nowcaster

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Source:
    """How one official code base names and sizes a network."""

    model: type[Nowcaster]
    names: Mapping[str, str]
    """Official tensor name -> ours, for every tensor."""
    options: Callable[[State, Mapping], dict]
    """(official state dict, config) -> constructor keywords of ``model``."""


def load(source: str, state_dict: Mapping, config: Mapping | None = None) -> Nowcaster:
    """Builds the network that the official weights belong to, in eval mode.

    Args:
        source: A key of ``SOURCES``.
        state_dict: Official tensors by name, or the checkpoint that holds them under ``state_dict``;
            a ``module.`` prefix (data-parallel training) is dropped.
        config: ``T_in`` and ``T_out``, 10 unless given; other keys are read from the shapes.

    Raises:
        ValueError: Unknown source, or tensors that are missing, left over or of another shape.
    """
    if source not in SOURCES:
        raise ValueError(f"Unknown source {source!r}; known: {', '.join(SOURCES)}.")
    known = SOURCES[source]
    tensors = {
        name.removeprefix("module."): tensor for name, tensor in state_dict.get("state_dict", state_dict).items()
    }
    _check_names(source, tensors, known.names)
    model = known.model(**known.options(tensors, config or {}))
    _check_shapes(source, tensors, known.names, model)
    model.load_state_dict({known.names[name]: tensor for name, tensor in tensors.items()})
    return model.eval()


def _check_names(source: str, tensors: State, names: Mapping[str, str]) -> None:
    missing, unexpected = sorted(names.keys() - tensors.keys()), sorted(tensors.keys() - names.keys())
    faults = [
        f"{fault} {', '.join(found)}" for fault, found in (("misses", missing), ("also holds", unexpected)) if found
    ]
    if faults:
        raise ValueError(f"The state dict is not one of {source}: it {' and '.join(faults)}.")


def _check_shapes(source: str, tensors: State, names: Mapping[str, str], model: Nowcaster) -> None:
    want = model.state_dict()
    for name, tensor in tensors.items():
        if tensor.shape != want[names[name]].shape:
            expected = tuple(want[names[name]].shape)
            raise ValueError(
                f"{name} of {source} has shape {tuple(tensor.shape)}; the other tensors ask for {expected}."
            )


def _encoder_forecaster_names(cell: Mapping[str, str]) -> dict[str, str]:
    """jhhuang96/ConvLSTM-PyTorch counts stages from 1; ``cell`` names the modules inside a cell."""
    modules = {
        "decoder.stage1.conv3_leaky_1": "up.0.0",
        "decoder.stage1.conv4_leaky_1": "up.0.2",
        "decoder.stage2.deconv2_leaky_1": "up.1.0",
        "decoder.stage3.deconv1_leaky_1": "up.2.0",
    }
    for n in (1, 2, 3):
        modules[f"encoder.stage{n}.conv{n}_leaky_1"] = f"down.{n - 1}.0"
        for official, ours in cell.items():
            modules[f"encoder.rnn{n}.{official}"] = f"encoder.{n - 1}.{ours}"
            modules[f"decoder.rnn{n}.{official}"] = f"forecaster.{n - 1}.{ours}"
    return {f"{official}.{leaf}": f"{ours}.{leaf}" for official, ours in modules.items() for leaf in ("weight", "bias")}


def _encoder_forecaster_options(tensors: State, config: Mapping) -> dict:
    first, channels = tensors["encoder.stage1.conv1_leaky_1.weight"].shape[:2]
    # The layer after a cell takes its hidden state, so its input is as wide as the cell.
    finest = tensors["decoder.stage1.conv3_leaky_1.weight"].shape[1]
    coarser = [tensors[f"decoder.stage{n}.deconv{4 - n}_leaky_1.weight"].shape[0] for n in (2, 3)]
    kernel = next(tensor for name, tensor in tensors.items() if name.startswith("encoder.rnn1.") and tensor.ndim == 4)
    return {
        "in_steps": config.get("T_in", 10),
        "out_steps": config.get("T_out", 10),
        "channels": channels,
        "first_width": first,
        "widths": (finest, *coarser),
        "kernel": kernel.shape[-1],
    }


_LSTM = {"conv.0": "gates.conv", "conv.1": "gates.norm"}
_GRU = {"conv1.0": "gates.conv", "conv1.1": "gates.norm", "conv2.0": "candidate.conv", "conv2.1": "candidate.norm"}

SOURCES = {
    "convlstm_ef": Source(ConvLSTM, _encoder_forecaster_names(_LSTM), _encoder_forecaster_options),
    "convgru_ef": Source(ConvGRU, _encoder_forecaster_names(_GRU), _encoder_forecaster_options),
}
"""Parity pack -> how its official code names the network."""
