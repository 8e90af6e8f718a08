"""github.com/chengtan9907/OpenSTL (Apache-2.0), the recurrent networks: stacked ConvLSTM, PredRNN++, MIM.

Weights of its version 0.3.0 come from cells with mistakes that were mended since: ``{"legacy": True}`` in the config
builds ConvLSTM and PredRNN++ with them.
"""

from __future__ import annotations

from typing import Any

from nowcast.models.convlstm_stacked import StackedConvLSTM
from nowcast.models.mim import MIM
from nowcast.models.nowcaster import Nowcaster
from nowcast.models.official import Config, Source, State, renamed
from nowcast.models.official.thuml import cell_names, layers, stack_options
from nowcast.models.predrnn_pp import PredRNNpp


def _convlstm_options(tensors: State, config: Config) -> dict[str, Any]:
    return stack_options(tensors, config) | {"shown": "candidate" if config.get("legacy") else "cell"}


def _predrnn_pp_options(tensors: State, config: Config) -> dict[str, Any]:
    return stack_options(tensors, config) | {"conv_c_reads": "m" if config.get("legacy") else "c"}


def _mim_options(tensors: State, config: Config) -> dict[str, Any]:
    """Peepholes tell the grid; all layers are as wide as the lowest."""
    lowest = {name.replace("stlstm_layer.", "cell_list."): tensor for name, tensor in tensors.items()}
    options = stack_options(lowest, config)
    peepholes = layers(tensors, "stlstm_layer_diff.{}.oc_weight")
    if peepholes:
        options["grid"] = tuple(options["patch"] * side for side in peepholes[0][1:])
    return options | {"widths": options["widths"] * (1 + len(peepholes)), "detached": True}


def _predrnn_pp_names(model: Nowcaster) -> dict[str, str]:
    return renamed(model, {r"^cells\.": "cell_list.", r"^highway\.conv_([xz])": r"gradient_highway.\1_concat"})


def _mim_names(model: Nowcaster) -> dict[str, str]:
    """Layers are counted through; MIM-S has no name of its own and stands among the tensors of its block."""
    rules = {
        r"^(blocks\.\d+)\.conv_([tsx])\.": r"\1.conv_\2_cc.",
        r"stationary\.(\d+\.)?conv_([hx])\.": r"stationary.\1conv_\2_concat.",
        r"\.stationary\.": ".",
        r"\.peep_c$": ".ct_weight",
        r"\.peep_o$": ".oc_weight",
        r"^lowest\.": "stlstm_layer.0.",
        r"^nonstationary\.": "stlstm_layer_diff.",
    }
    blocks = {rf"^blocks\.{layer}\.": f"stlstm_layer.{layer + 1}." for layer in range(len(model.blocks))}  # type: ignore
    return renamed(model, rules | blocks)


CONVLSTM_STACKED = Source(
    StackedConvLSTM, _convlstm_options, cell_names, unused=r"\.conv_o\.|^cell_list\.\d+\.conv_last\."
)
PREDRNN_PP = Source(PredRNNpp, _predrnn_pp_options, _predrnn_pp_names, unused=r"\.conv_o\.")
MEMORY_IN_MEMORY = Source(MIM, _mim_options, _mim_names, unused=r"^stlstm_layer_diff\.\d+\.conv_last\.")
