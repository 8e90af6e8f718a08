"""github.com/miaomiaoToday/GS2PM-master (no licence file): the classes MS2Pv3 and MS2Pv3_tune.

Beside the prompt their tensors are named as in OpenSTL, but for the translator.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from nowcast.models.gs2pm import GS2PM
from nowcast.models.nowcaster import Nowcaster
from nowcast.models.official import Config, Made, Source, State
from nowcast.models.official.openstl import simvp_names, simvp_options


def _names(model: Nowcaster) -> dict[str, Made]:
    return {ours: replace(made, names=tuple(map(_official, made.names))) for ours, made in simvp_names(model).items()}


def _official(name: str) -> str:
    return name.replace("hid.", "translator.", 1).replace("prompt.", "prompt.pad_", 1)


def _options(tensors: State, config: Config, *, masked: bool) -> dict[str, Any]:
    found = simvp_options({name.replace("translator.", "hid.", 1): tensor for name, tensor in tensors.items()}, config)
    border, width = tensors["prompt.pad_up"].shape[-2:]
    height = tensors["prompt.pad_left"].shape[-2] + 2 * border
    options = ("in_steps", "out_steps", "channels", "width", "hidden", "layers", "blocks", "ratio", "drop_path")
    return {name: found[name] for name in options} | {
        "heads": config.get("heads", 8),
        "prompt_grid": (height, width),
        "border": border,
        "masked": masked,
    }


PRETRAINED = Source(GS2PM, partial(_options, masked=True), _names)
TUNED = Source(GS2PM, partial(_options, masked=False), _names)
