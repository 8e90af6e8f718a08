"""github.com/sangmin-git/LMC-Memory (CC BY-NC 4.0, not for commercial use): LMC-Memory."""

from __future__ import annotations

import re
from itertools import count
from typing import Any

import torch

from nowcast.models.lmc_memory import LMCMemory
from nowcast.models.nowcaster import Nowcaster
from nowcast.models.official import Config, Made, Source, State, renamed

# The official lists count activations and pools too.
MOTION = {rf"\.convs\.{n}\.": f".{official}." for n, official in enumerate((0, 3, 6, 8, 11, 13))}
LAYERS = {
    r"^memory\.slots$": "memory.memory_w",
    r"^memory\.(matching|context)\.": r"memory.motion_\1_encoder.",
    r"^cells\.(\d+)\.bias_([xh])$": r"convlstm_list.\1.conv2d_\2.bias",
    r"^attention\.0\.": "attention_func.2.",
    r"^attention\.2\.": "attention_func.4.",
}


def _options(tensors: State, config: Config) -> dict[str, Any]:
    activation = str(config.get("output_activation", "sigmoid" if config.get("dataset") == "kth" else "none"))
    return {
        "in_steps": config.get("short_len", 10),
        "out_steps": config.get("out_len", 30),
        "channels": tensors["encoder.0.weight"].shape[1],
        "width": tensors["encoder.4.weight"].shape[0],
        "layers": next(n for n in count() if f"convlstm_list.{n}.conv2d_x.weight" not in tensors),
        "slots": tensors["memory.memory_w"].shape[0],
        "sigmoid": activation == "sigmoid",
        "long_steps": config.get("long_len", 30),
    }


def _names(model: Nowcaster) -> dict[str, str | Made]:
    names: dict[str, str | Made] = {**renamed(model, MOTION | LAYERS)}
    for ours, official in renamed(model, MOTION | LAYERS).items():
        if cell := re.match(r"cells\.(\d+)\.weight$", ours):
            both = tuple(f"convlstm_list.{cell[1]}.conv2d_{source}.weight" for source in "xh")
            names[ours] = Made(both, lambda of_x, of_h: torch.cat([of_x, of_h], dim=1))
        elif ".convs." in ours and ours.endswith("weight"):
            # (out, in, time, row, column): the frame before, itself and the one after become channels
            names[ours] = Made((official,), lambda kernel: kernel.transpose(1, 2).flatten(1, 2))
    return names


LMC_MEMORY = Source(LMCMemory, _options, _names)
