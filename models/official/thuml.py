"""github.com/thuml/predrnn-pytorch and github.com/thuml/MotionRNN (no licence): PredRNN, PredRNN-V2, MotionRNN."""

from __future__ import annotations

from models.nowcaster import Nowcaster
from models.official import Config, Source, State, renamed
from models.predrnn import PredRNN
from models.predrnn_v2 import PredRNNv2


def layers(tensors: State, name: str = r"cell_list.{}.conv_h.0.weight") -> list[tuple[int, ...]]:
    """Shape of one tensor in every layer that has it, from the lowest."""
    found, count = [], 0
    while (key := name.format(count)) in tensors:
        found.append(tuple(tensors[key].shape))
        count += 1
    return found


def stack_options(tensors: State, config: Config) -> dict:
    """What the networks on folded frames have in common, in the words of this code base or of OpenSTL."""
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
    """A setting that counts something."""
    return int(str(config.get(key, otherwise)))


def _v2_options(tensors: State, config: Config) -> dict:
    return stack_options(tensors, config) | {"decoupling": float(str(config.get("decouple_beta", 0.1)))}


def cell_names(model: Nowcaster) -> dict[str, str]:
    return renamed(model, {r"^cells\.": "cell_list."})


PREDRNN = Source(PredRNN, stack_options, cell_names)
PREDRNN_V2 = Source(PredRNNv2, _v2_options, cell_names)
