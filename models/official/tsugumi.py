"""github.com/tsugumi-sys/SA-ConvLSTM-Pytorch (no licence file): SA-ConvLSTM, from sequence to sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nowcast.models.nowcaster import Nowcaster
from nowcast.models.official import Config, Made, Source, State
from nowcast.models.sa_convlstm import SASequence

PARTS = {
    "gates": "convlstm_cell.conv",
    "memory.found_h": "attention_memory.z_h",
    "memory.found_memory": "attention_memory.z_m",
    "memory.mix": "attention_memory.w_z",
    "memory.gates": "attention_memory.w",
}
PROJECTIONS = {"memory.from_h": ("query_h", "key_h", "value_h"), "memory.from_memory": ("key_m", "value_m")}
PEEPHOLES = ("W_ci", "W_cf", "W_co")


def _names(model: Nowcaster) -> Mapping[str, str | Made]:
    return {ours: _official(ours) for ours in model.state_dict()}


def _official(ours: str) -> str | Made:
    if ours == "output.taps.weight":
        return Made(("sequential.conv3d.weight",), _taps)
    if ours == "output.bias":
        return "sequential.conv3d.bias"
    kind, layer, *rest = ours.split(".")
    number = int(layer) + 1
    if kind == "norms":
        return f"sequential.layernorm{number}.{rest[0]}"
    cell = f"sequential.sam-convlstm{number}.sam_convlstm_cell."
    if rest == ["peepholes"]:
        return Made(tuple(f"{cell}convlstm_cell.{name}" for name in PEEPHOLES), _stack)
    part, leaf = ".".join(rest[:-1]), rest[-1]
    if part in PROJECTIONS:
        return Made(tuple(f"{cell}attention_memory.{name}.{leaf}" for name in PROJECTIONS[part]), _join)
    return f"{cell}{PARTS[part]}.{leaf}"


def _stack(*peepholes: Tensor) -> Tensor:
    return torch.stack(peepholes)


def _join(*projections: Tensor) -> Tensor:
    return torch.cat(projections)


def _taps(kernel: Tensor) -> Tensor:
    """From (outputs, inputs, time, height, width) to time and outputs together."""
    return kernel.movedim(2, 0).flatten(0, 1)


def _options(tensors: State, config: Config) -> dict[str, Any]:
    cell = "sequential.sam-convlstm1.sam_convlstm_cell."
    gates = tensors[f"{cell}convlstm_cell.conv.weight"]
    width, steps, *grid = tensors["sequential.layernorm1.weight"].shape
    activation = str(config.get("activation", "tanh"))
    single = not config.get("return_sequences", False)
    return {
        "in_steps": steps,
        "out_steps": config.get("T_out", 1 if single else steps),
        "channels": gates.shape[1] - width,
        "layers": sum(name.startswith("sequential.layernorm") and name.endswith("weight") for name in tensors),
        "width": width,
        "kernel": gates.shape[-1],
        "attention": len(tensors[f"{cell}attention_memory.query_h.weight"]),
        "activation": "leaky-relu" if activation == "leakyRelu" else activation,
        "single": single,
        "grid": tuple(grid),
    }


SA_CONVLSTM_SEQ = Source(SASequence, _options, _names)
