"""github.com/Hzzone/Precipitation-Nowcasting: PyTorch port of the HKO-7 benchmark's TrajGRU.

Its 1x1 convolution reads all channels of one link after those of another, ours all links of one channel.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nowcast.models.nowcaster import Nowcaster
from nowcast.models.official import Config, Made, Source, State, renamed
from nowcast.models.trajgru import TrajGRU

CELL = {
    r"read\.": "i2h.",
    r"push\.": "i2f_conv1.",
    r"motion\.": "h2f_conv1.",
    r"flows\.": "flows_conv.",
    r"mix\.": "ret.",
}


def _layers(stages: int) -> dict[str, str]:
    """Stages are counted from 1, layers of the forecaster from the coarsest; "leaky" tells of an activation."""
    names = {
        r"^up\.0\.2\.": f"forecaster.stage1.conv{stages}_leaky_2.",
        r"^up\.0\.4\.": f"forecaster.stage1.conv{stages}_3.",
    }
    for n in range(stages, 0, -1):
        names |= {
            rf"^down\.{n - 1}\.0\.": f"encoder.stage{n}.conv{n}_leaky_1.",
            rf"^up\.{n - 1}\.0\.": f"forecaster.stage{n}.deconv{stages + 1 - n}_leaky_1.",
            rf"^(encoder|forecaster)\.{n - 1}\.": rf"\1.rnn{n}.",
        }
    return names


def _names(model: Nowcaster) -> dict[str, str | Made]:
    assert isinstance(model, TrajGRU)
    names = renamed(model, _layers(len(model.encoder)) | CELL)
    return {
        ours: Made((official,), _channels_first) if official.endswith("ret.weight") else official
        for ours, official in names.items()
    }


def _channels_first(mix: Tensor) -> Tensor:
    """(3 D, L D) -> (3 D, D L)."""
    width = len(mix) // 3
    output: Tensor = mix.unflatten(1, (-1, width)).transpose(1, 2).flatten(1, 2)
    return output


def _options(tensors: State, config: Config) -> dict[str, Any]:
    stages = sum(name.startswith("encoder.rnn") and name.endswith("ret.bias") for name in tensors)
    numbers = range(1, stages + 1)
    ups = [tensors[f"forecaster.stage{n}.deconv{stages + 1 - n}_leaky_1.weight"] for n in numbers]
    links = {
        part: tuple(len(tensors[f"{part}.rnn{n}.flows_conv.bias"]) // 2 for n in numbers)
        for part in ("encoder", "forecaster")
    }
    first, channels = tensors["encoder.stage1.conv1_leaky_1.weight"].shape[:2]
    widths = tuple(len(tensors[f"encoder.rnn{n}.ret.bias"]) // 3 for n in numbers)
    read = tuple(len(tensors[f"encoder.stage{n}.conv{n}_leaky_1.bias"]) for n in numbers[1:])
    shown = tuple(up.shape[1] for up in ups[1:])
    return {
        "in_steps": config.get("T_in", 5),
        "out_steps": config.get("T_out", 20),
        "channels": channels,
        "first_width": first,
        "widths": widths,
        "strides": tuple(up.shape[-1] - 2 for up in ups),
        "links": links["encoder"],
        "forecaster_links": None if links["forecaster"] == links["encoder"] else links["forecaster"],
        "encoder_inputs": None if read == widths[1:] else read,
        "forecaster_inputs": None if shown == widths[:-1] else shown,
        "kernel": tensors["encoder.rnn1.i2h.weight"].shape[-1],
        "flow_kernel": tensors["encoder.rnn1.flows_conv.weight"].shape[-1],
        "align_corners": config.get("align_corners", True),
    }


TRAJGRU = Source(TrajGRU, _options, _names, unused=r"^forecaster\.rnn\d+\.(i2h|i2f_conv1)\.(weight|bias)$")
