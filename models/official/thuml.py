"""github.com/thuml/predrnn-pytorch and github.com/thuml/MotionRNN (no licence): PredRNN, PredRNN-V2, MotionRNN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nowcast.models.motionrnn import MOTION, MotionRNN
from nowcast.models.nowcaster import Nowcaster
from nowcast.models.official import Config, Made, Source, State, renamed
from nowcast.models.predrnn import PredRNN
from nowcast.models.predrnn_v2 import PredRNNv2


def layers(tensors: State, name: str = r"cell_list.{}.conv_h.0.weight") -> list[tuple[int, ...]]:
    """Shape of one tensor in every layer that has it, from the lowest."""
    found, count = [], 0
    while (key := name.format(count)) in tensors:
        found.append(tuple(tensors[key].shape))
        count += 1
    return found


def stack_options(tensors: State, config: Config) -> dict[str, Any]:
    """Return what the networks on folded frames have in common, in the words of this code base or of OpenSTL."""
    shapes, patch = layers(tensors), number(config, "patch_size", 4)
    known = number(config, "input_length", number(config, "pre_seq_length", 10))
    options = {
        "in_steps": known,
        "out_steps": number(config, "aft_seq_length", number(config, "total_length", known + 10) - known),
        "channels": tensors["conv_last.weight"].shape[0] // patch**2,
        "widths": tuple(shape[1] for shape in shapes),
        "kernel": shapes[0][-1],
        "patch": patch,
        "sampling": "reverse" if config.get("reverse_scheduled_sampling") else "scheduled",
    }
    scale = tensors.get("cell_list.0.conv_h.1.weight")
    if scale is not None:
        options |= {"layer_norm": True, "grid": tuple(patch * side for side in scale.shape[1:])}
    return options


def number(config: Config, key: str, otherwise: int) -> int:
    """Read a setting that counts something."""
    return int(str(config.get(key, otherwise)))


def _v2_options(tensors: State, config: Config) -> dict[str, Any]:
    return stack_options(tensors, config) | {"decoupling": float(str(config.get("decouple_beta", 0.1)))}


def cell_names(model: Nowcaster) -> dict[str, str]:
    """Name the tensors of a network whose cells stand in ``cell_list``."""
    return renamed(model, {r"^cells\.": "cell_list."})


def _motion_names(model: Nowcaster) -> dict[str, str | Made]:
    """Ours reads a field with one convolution where there several read it together with the motion."""
    rules = {
        r"^cells\.": "cell_list.",
        r"^conv_first\.": "conv_first_v.",
        r"^between\.(\d+)\.down\.": r"enc_list.\1.",
        r"^between\.(\d+)\.up\.": r"dec_list.\1.",
        r"^between\.(\d+)\.gate\.": r"gate_list.\1.",
        r"^between\.(\d+)\.motion\.": r"motion_list.\1.",
        r"\.mix\.": ".warp.conv.",
    }
    names: dict[str, str | Made] = {}
    for ours, official in renamed(model, rules).items():
        place, _, leaf = official.rpartition(".")
        motion, _, conv = place.rpartition(".")
        update, reset, candidate = (f"{motion}.{gate}.{leaf}" for gate in ("update", "reset", "output"))
        match conv, leaf:
            case "conv_x", "weight":
                names[ours] = Made((update, reset, candidate, f"{motion}.warp.warp_gate.{leaf}"), _of_field)
            case "conv_x", "bias":
                names[ours] = Made((update, reset, candidate, f"{motion}.warp.warp_gate.{leaf}"), _stacked)
            case "conv_gates", _:
                names[ours] = Made((update, reset), _of_motion)
            case "conv_candidate", _:
                names[ours] = Made((candidate,), _of_motion)
            case _:
                names[ours] = Made((official,), _flat) if ".warp.conv." in official else official
    return names


def _stacked(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def _of_field(*kernels: Tensor) -> Tensor:
    width = kernels[-1].shape[1]
    return torch.cat([kernel[:, :width] for kernel in kernels])


def _of_motion(*kernels: Tensor) -> Tensor:
    return torch.cat([kernel[:, -MOTION:] for kernel in kernels])


def _flat(kernel: Tensor) -> Tensor:
    """Return a kernel with the stride of its side, over tiles of neighbours, as a matrix."""
    return kernel.flatten(1)[..., None, None]


PREDRNN = Source(PredRNN, stack_options, cell_names)
PREDRNN_V2 = Source(PredRNNv2, _v2_options, cell_names)
MOTIONRNN = Source(MotionRNN, stack_options, _motion_names)
