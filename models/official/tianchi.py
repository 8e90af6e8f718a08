"""github.com/jerrywn121/TianChi_AIEarth (no licence file): SA-ConvLSTM, autoregressive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nowcast.models.nowcaster import Nowcaster
from nowcast.models.official import Config, Made, Source, State, renamed
from nowcast.models.sa_convlstm import SAConvLSTM

NAMES = {
    r"^conv_last\.": "conv_output.",
    r"^cells\.": "layers.",
    r"\.memory\.from_h\.": ".sa.conv_h.",
    r"\.memory\.from_memory\.": ".sa.conv_m.",
    r"\.memory\.mix\.": ".sa.conv_z.",
    r"\.memory\.gates\.": ".sa.conv_output.",
    r"\.gates\.": ".conv.",
}


def _names(model: Nowcaster) -> Mapping[str, str | Made]:
    names = renamed(model, NAMES)
    gates = {ours: Made((official,), _reordered) for ours, official in names.items() if ".conv." in official}
    return {**names, **gates}


def _reordered(gates: Tensor) -> Tensor:
    """From i f o g to i f g o."""
    i, f, o, g = gates.chunk(4)
    return torch.cat([i, f, g, o])


def _options(tensors: State, config: Config) -> dict[str, Any]:
    layers = sum(name.endswith(".conv.bias") for name in tensors)
    gates = [tensors[f"layers.{layer}.conv.weight"] for layer in range(layers)]
    widths = tuple(len(weight) // 4 for weight in gates)
    return {
        "in_steps": config.get("input_frames", config.get("input_length", 12)),
        "out_steps": config.get("future_frames", 26),
        "channels": gates[0].shape[1] - widths[0],
        "widths": widths,
        "kernel": gates[0].shape[-1],
        "patch": 1,
        "attention": len(tensors["layers.0.sa.conv_z.weight"]),
        "scaled": True,
    }


SA_CONVLSTM = Source(SAConvLSTM, _options, _names)
