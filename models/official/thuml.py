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


def stack_options(tensors: State, config: Config, *, patch: int) -> dict:
    """What the folded recurrent networks have in common: widths, kernel, channels, norms, sampling."""
    shapes = layers(tensors)
    options = {
        "widths": tuple(shape[1] for shape in shapes),
        "kernel": shapes[0][-1],
        "patch": patch,
        "channels": tensors["conv_last.weight"].shape[0] // patch**2,
        "sampling": "reverse" if config.get("reverse_scheduled_sampling") else "scheduled",
    }
    scale = tensors.get("cell_list.0.conv_h.1.weight")
    if scale is not None:
        options |= {"layer_norm": True, "grid": tuple(patch * side for side in scale.shape[1:])}
    return options


def _lengths(config: Config) -> dict:
    known = int(str(config.get("input_length", 10)))
    return {"in_steps": known, "out_steps": int(str(config.get("total_length", known + 10))) - known}


def _predrnn_options(tensors: State, config: Config) -> dict:
    patch = int(str(config.get("patch_size", 4)))
    return _lengths(config) | stack_options(tensors, config, patch=patch)


def _names(model: Nowcaster) -> dict[str, str]:
    return dict(renamed(model, {r"^cells\.": "cell_list."}))


def _v2_options(tensors: State, config: Config) -> dict:
    return _predrnn_options(tensors, config) | {"decoupling": float(str(config.get("decouple_beta", 0.1)))}


PREDRNN = Source(PredRNN, _predrnn_options, _names)
PREDRNN_V2 = Source(PredRNNv2, _v2_options, _names)
