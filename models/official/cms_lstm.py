"""github.com/czh-98/CMS-LSTM (MIT): CMS-LSTM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nowcast.models.cms_lstm import CMSLSTM
from nowcast.models.nowcaster import Nowcaster
from nowcast.models.official import Config, Made, Source, State, renamed

NAMES = {
    r"^embedding\.": "embed.",
    r"^cells\.": "lstm.",
    r"expression\.gather\.": "SEBlock.conv_bn.0.",
    r"expression\.gather_norm\.": "SEBlock.conv_bn.1.",
    r"expression\.merge\.": "SEBlock.w_z.",
    r"expression\.from_h\.": "SEBlock.w_h2h.",
    r"expression\.from_z\.": "SEBlock.w_z2h.",
    r"expression\.norm\.": "SEBlock.norm_mem.",
    r"^(lstm\.\d+)\.norm\.": r"\1.norm_cell.",
    r"context\.to_input\.": "convQ.",
    r"context\.to_hidden\.": "convR.",
    r"\.from_x\.": ".conv_i2h.",
    r"\.from_h\.": ".conv_h2h.",
    r"^conv_last\.": "output.",
}
"""From ours to theirs, in this order."""


def _names(model: Nowcaster) -> Mapping[str, str | Made]:
    """Projections of all scales are one layer of ours."""
    names: dict[str, str | Made] = dict(renamed(model, NAMES))
    scales = model.cells[0].expression.scales  # type: ignore[union-attr, index]
    for layer in range(len(model.cells)):  # type: ignore[arg-type]
        for kind in ("query.weight", "query.bias", "key.weight", "value.weight", "value.bias"):
            stages = tuple(f"lstm.{layer}.SEBlock.stages.{scale}.f_{kind}" for scale in range(scales))
            names[f"cells.{layer}.expression.{kind}"] = Made(stages, _stacked)
    return names


def _stacked(*projections: Tensor) -> Tensor:
    """1 x 1 convolutions as one linear layer."""
    return torch.cat([tensor.flatten(1) if tensor.ndim > 1 else tensor for tensor in projections])


def _options(tensors: State, config: Config) -> dict[str, Any]:
    width, folded = tensors["embed.weight"].shape[:2]
    height, columns = tensors["lstm.0.norm_cell.weight"].shape[1:]
    patch = int(config.get("patch", 4))  # type: ignore[call-overload]
    return {
        "in_steps": config.get("T_in", 10),
        "out_steps": config.get("T_out", 10),
        "channels": folded // patch**2,
        "layers": sum(name.endswith(".norm_cell.weight") for name in tensors),
        "width": width,
        "kernel": tensors["lstm.0.conv_i2h.0.weight"].shape[-1],
        "patch": patch,
        "scales": sum(name.startswith("lstm.0.") and name.endswith(".f_value.weight") for name in tensors),
        "grid": (height * patch, columns * patch),
    }


CMS_LSTM = Source(CMSLSTM, _options, _names, unused=r"SEBlock\.stages\.\d+\.(gamma|f_key\.bias)$")
