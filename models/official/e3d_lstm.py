"""github.com/google/e3d_lstm (Apache-2.0, TensorFlow 1): E3D-LSTM.

Its checkpoints (``model.ckpt-80000.index`` and ``.data-00000-of-00001``) are read by TensorFlow alone, any version:

    reader = tf.train.load_checkpoint("model.ckpt-80000")
    np.savez("e3d_lstm.npz", **{name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})

and ``nowcast models import e3d_lstm e3d_lstm.npz`` goes on from there, on a machine without it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nowcast.models.e3d_lstm import E3DLSTM
from nowcast.models.nowcaster import Nowcaster
from nowcast.models.official import Config, Made, Source, State

SCOPE = "generator/e3d-lstm/"
CONVOLUTIONS = {"from_h": "conv3d", "from_x": "conv3d_1", "cell_to_gate": "conv3d_3", "memory_to_gate": "conv3d_4"}
NORMS = {"norm_h": "hidden", "norm_x": "inputs", "norm_recall": "self_attn", "norm_memory": "global_memory"}
LEAVES = {"weight": "gamma", "bias": "beta"}


def _names(model: Nowcaster) -> Mapping[str, str | Made]:
    return {ours: _official(ours) for ours in model.state_dict()}


def _official(ours: str) -> str | Made:
    if ours.startswith("conv_last."):
        return Made((f"{SCOPE}conv3d/kernel",), _head) if ours.endswith("weight") else f"{SCOPE}conv3d/bias"
    _, layer, part, *rest = ours.split(".")
    cell, leaf = f"{SCOPE}e3d{layer}", rest[-1] if rest else ""
    if part == "memory_bias":
        return f"{cell}/conv3d_2/bias"
    if part in NORMS:
        return f"{cell}/{NORMS[part]}/{LEAVES[leaf]}"
    layer_name = f"{cell}/{CONVOLUTIONS.get(part, 'conv3d_5')}"
    if leaf == "bias":
        return f"{layer_name}/bias"
    return Made((f"{layer_name}/kernel",), {"here": _first, "after": _second}.get(rest[0], _dense))


def _first(kernel: Tensor) -> Tensor:
    """Plane of a kernel (time, height, width, inputs, outputs) that meets the slice itself."""
    return kernel[0].permute(3, 2, 0, 1)


def _second(kernel: Tensor) -> Tensor:
    """Select the plane that meets the slice after it."""
    return kernel[1].permute(3, 2, 0, 1)


def _dense(kernel: Tensor) -> Tensor:
    return kernel[0, 0, 0].T


def _head(kernel: Tensor) -> Tensor:
    """Both slices are channels of ours."""
    return kernel[:, 0, 0].flatten(0, 1).T[:, :, None, None]


def _options(tensors: State, config: Config) -> dict[str, Any]:
    patch = int(config.get("patch", config.get("patch_size", 4)))  # type: ignore[call-overload]
    start = int(config.get("input_length", 10))  # type: ignore[call-overload]
    folded = tensors[f"{SCOPE}conv3d/kernel"].shape[-1]
    layers = sum(bool(re.search(r"e3d\d+/conv3d/bias$", name)) for name in tensors)
    widths = [len(tensors[f"{SCOPE}e3d{layer}/conv3d/bias"]) // 4 for layer in range(layers)]
    alike = {"layers": layers, "width": widths[0]} if len(set(widths)) == 1 else {"widths": tuple(widths)}
    return {
        "in_steps": start,
        "out_steps": int(config.get("total_length", start + 10)) - start,  # type: ignore[call-overload]
        "channels": folded // patch**2,
        **alike,
        "layer_norm": f"{SCOPE}e3d0/hidden/gamma" in tensors,
        "kernel": tensors[f"{SCOPE}e3d0/conv3d/kernel"].shape[1],
        "patch": patch,
        "stale_memory": True,
        "eps": 1e-12,
    }


# The global memory is always zero, so its kernel has no effect. Moving averages were kept and never used.
UNUSED = r"/conv3d_2/kernel$|/ExponentialMovingAverage$|Variable(_\d+)?$|^(beta\d_power|global_step)$"
E3D_LSTM = Source(E3DLSTM, _options, _names, unused=UNUSED)
