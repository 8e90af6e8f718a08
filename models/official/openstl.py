"""github.com/chengtan9907/OpenSTL (Apache-2.0)."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nowcast.models.mau import MAU
from nowcast.models.nowcaster import Nowcaster
from nowcast.models.official import Config, Made, Source, State, renamed
from nowcast.models.phydnet import PhyDNet
from nowcast.models.simvp import SimVP
from nowcast.models.tau import TAU

# -- SimVP with all its middles, and TAU -----------------------------------------------------------

UNITS = {
    r"^encoder\.(\d+)\.": r"enc.enc.\1.conv.",
    r"^decoder\.(\d+)\.": r"dec.dec.\1.conv.",
    r"^readout\.": "dec.readout.",
}
INCEPTION = {
    r"^translator\.down\.": "hid.enc.",
    r"^translator\.up\.": "hid.dec.",
    r"\.convs\.(\d+)\.": r".layers.\1.conv.",
    r"\.norms\.(\d+)\.": r".layers.\1.norm.",
}
MIXING = {r"^translator\.": "hid.enc.", r"\.mix\.": ".attn.", r"\.scale([12])$": r".layer_scale_\1"}
LARGE_KERNEL = {
    r"\.gate\.": ".spatial_gating_unit.",
    r"\.near\.": ".conv0.",
    r"\.far\.": ".conv_spatial.",
    r"\.point\.": ".conv1.",
    r"\.squeeze\.": ".fc.",
    r"\.mlp\.dwconv\.": ".mlp.dwconv.dwconv.",
}
BLOCKS = {
    "gsta": MIXING | LARGE_KERNEL,
    "van": MIXING | LARGE_KERNEL,
    "tau": MIXING | LARGE_KERNEL,
    "moga": MIXING
    | {
        r"\.value\.first\.": ".value.DW_conv0.",
        r"\.value\.second\.": ".value.DW_conv1.",
        r"\.value\.third\.": ".value.DW_conv2.",
        r"\.value\.point\.": ".value.PW_conv.",
        r"\.mlp\.common\.": ".mlp.decompose.",
    },
    "hornet": MIXING | {r"\.mix\.": ".gnconv.", r"\.mlp\.fc": ".pwconv", r"\.scale([12])$": r".gamma\1"},
    "convnext": MIXING | {r"\.scale$": ".gamma"},
    "poolformer": MIXING,
    "convmixer": MIXING,
    "mlp-mixer": MIXING | {r"\.mix\.": ".mlp_tokens.", r"\.mlp\.": ".mlp_channels."},
    "swin": MIXING,
    "vit": MIXING,
    "uniformer": {
        r"\.mix\.0\.": ".conv1.",
        r"\.mix\.1\.": ".attn.",
        r"\.mix\.2\.": ".conv2.",
        r"\.position\.": ".pos_embed.",
    }
    | MIXING
    | {r"\.scale([12])$": r".gamma_\1"},
}
SIGNS = {
    "incepu": "hid.dec.0.conv1.weight",
    "tau": "hid.enc.1.block.attn.spatial_gating_unit.fc.0.weight",
    "moga": "hid.enc.1.block.attn.value.PW_conv.weight",
    "hornet": "hid.enc.1.block.gnconv.proj_in.weight",
    "convnext": "hid.enc.1.block.gamma",
    "convmixer": "hid.enc.1.block.conv_pw.weight",
    "mlp-mixer": "hid.enc.1.block.mlp_tokens.fc1.weight",
    "swin": "hid.enc.1.block.attn.relative_position_bias_table",
    "uniformer": "hid.enc.1.block.pos_embed.weight",
    "vit": "hid.enc.1.block.attn.qkv.weight",
}
"""A tensor that only networks with this middle have, or that those above it lack."""


def middle(tensors: State) -> str:
    """Which middle the official tensors belong to."""
    for name, sign in SIGNS.items():
        if sign in tensors:
            return name
    gate = tensors.get("hid.enc.1.block.attn.spatial_gating_unit.conv1.weight")
    if gate is None:
        return "poolformer"
    return "gsta" if gate.shape[0] == 2 * gate.shape[1] else "van"


def count(tensors: State, pattern: str) -> int:
    """Layers there are, from names such as ``enc.enc.{}.conv.norm.weight``."""
    layers = 0
    while pattern.format(layers) in tensors:
        layers += 1
    return layers


def stem(tensors: State) -> dict[str, Any]:
    """Options that encoder and decoder tell."""
    width, channels, *_, encoder_kernel = tensors["enc.enc.0.conv.conv.weight"].shape
    layers = count(tensors, "enc.enc.{}.conv.norm.weight")
    return {
        "channels": channels,
        "width": width,
        "layers": layers,
        "encoder_kernel": encoder_kernel,
        "decoder_kernel": tensors[f"dec.dec.{layers - 1}.conv.conv.weight"].shape[-1],
    }


def lengths(stacked: int, width: int, config: Config) -> dict[str, Any]:
    """Frames in and out."""
    return {"in_steps": stacked // width, "out_steps": config.get("aft_seq_length", stacked // width)}


def inception(tensors: State) -> dict[str, Any]:
    """Options that the Inception modules tell."""
    layers = count(tensors, "hid.enc.0.layers.{}.conv.weight")
    convs = [tensors[f"hid.enc.0.layers.{i}.conv.weight"] for i in range(layers)]
    return {
        "middle": "incepu",
        "hidden": convs[0].shape[0],
        "blocks": count(tensors, "hid.enc.{}.conv1.weight"),
        "kernels": tuple(conv.shape[-1] for conv in convs),
        "groups": tensors["hid.enc.0.conv1.weight"].shape[0] // convs[0].shape[1],
    }


def metaformer(tensors: State, config: Config, kind: str, stride: int) -> dict[str, Any]:
    """Options that the blocks tell."""
    found: dict[str, Any] = {"middle": kind, "blocks": _blocks(tensors), "hidden": _width(tensors, 1)}
    first = _width(tensors, 0)
    hidden = [name for name in ("mlp.fc1", "mlp_channels.fc1", "pwconv1") if f"hid.enc.0.block.{name}.bias" in tensors]
    if hidden:
        wide = len(tensors[f"hid.enc.0.block.{hidden[0]}.bias"])
        asked = float(config.get("mlp_ratio", 0))  # type: ignore[arg-type]
        found["ratio"] = asked if int(first * asked) == wide else wide / first
    if kind == "swin":
        rows, found["heads"] = tensors["hid.enc.0.block.attn.relative_position_bias_table"].shape
        found["window"] = (math.isqrt(rows) + 1) // 2
    if kind == "mlp-mixer":
        side = math.isqrt(tensors["hid.enc.0.block.mlp_tokens.fc1.weight"].shape[1]) * stride
        found["grid"] = tuple(config.get("in_shape", (0, 0, side, side))[2:])  # type: ignore[index]
    return found | {"drop_path": config.get("drop_path", 0.0)}


def _blocks(tensors: State) -> int:
    return len({name.split(".")[2] for name in tensors if name.startswith("hid.enc.")})


def _width(tensors: State, block: int) -> int:
    norm = next(name for name in ("norm1", "norm_1", "norm") if f"hid.enc.{block}.block.{name}.weight" in tensors)
    return len(tensors[f"hid.enc.{block}.block.{norm}.weight"])


def simvp_options(tensors: State, config: Config) -> dict[str, Any]:
    """Read the keywords of ``SimVP`` from tensors and config."""
    found, kind = stem(tensors), middle(tensors)
    if kind == "incepu":
        stacked = tensors["hid.enc.0.conv1.weight"].shape[1]
        return found | inception(tensors) | lengths(stacked, found["width"], config)
    found |= metaformer(tensors, config, kind, 2 ** (found["layers"] // 2))
    return found | lengths(_width(tensors, 0), found["width"], config)


def _tau_options(tensors: State, config: Config) -> dict[str, Any]:
    options = simvp_options(tensors, config) | {"divergence": config.get("alpha", 0.1)}
    return {name: option for name, option in options.items() if name != "middle"}


def simvp_names(model: Nowcaster) -> dict[str, Made]:
    """Name all tensors: the convolution of a unit that doubles the grid stands in a sequence."""
    names = renamed(model, UNITS | (INCEPTION if model.middle == "incepu" else BLOCKS[model.middle]))  # type: ignore
    state = model.state_dict()
    made: dict[str, Made] = {}
    for ours, official in names.items():
        unit = model.get_submodule(ours.rpartition(".")[0].rpartition(".")[0])
        if ours.startswith("decoder.") and getattr(unit, "shuffled", False) and ".conv." in ours:
            official = official.replace(".conv.conv.", ".conv.conv.0.")
        made[ours] = Made((official,), partial(shaped, like=state[ours]))
    return made


def shaped(official: Tensor, like: Tensor) -> Tensor:
    """Laid out as ours, where it holds as many numbers."""
    return official.reshape(like.shape) if official.numel() == like.numel() else official


UNUSED = r"\.attn\.relative_position_index$|\.attn_mask$"

SIMVP = Source(SimVP, simvp_options, simvp_names, unused=UNUSED)
TEMPORAL_ATTENTION = Source(TAU, _tau_options, simvp_names)

# -- PhyDNet ---------------------------------------------------------------------------------------

PHYDNET_NAMES = {
    r"^physics\.derivatives\.": "phycell.cell_list.0.F.conv1.",
    r"^physics\.norm\.": "phycell.cell_list.0.F.bn1.",
    r"^physics\.combine\.": "phycell.cell_list.0.F.conv2.",
    r"^physics\.gain\.conv\.": "phycell.cell_list.0.convgate.",
    r"^rest\.(\d+)\.gates\.": r"convcell.cell_list.\1.",
    r"^encoder\.": "encoder.encoder_E.",
    r"^see_physics\.": "encoder.encoder_Ep.",
    r"^see_rest\.": "encoder.encoder_Er.",
    r"^show_physics\.": "encoder.decoder_Dp.",
    r"^show_rest\.": "encoder.decoder_Dr.",
    r"^decoder\.": "encoder.decoder_D.",
    r"(decoder_D)\.6\.": r"\1.upc3.",
} | {
    rf"(coder_{letter}[pr]?)\.{3 * unit + layer}\.": rf"\1.{name}{unit + 1}.main.{layer}."
    for letter, name in (("E", "c"), ("D", "upc"))
    for unit in range(3)
    for layer in range(2)
}
"""Units are a convolution, a norm and an activation, counted from 1."""


def _phydnet_options(tensors: State, config: Config) -> dict[str, Any]:
    base, channels = tensors["encoder.encoder_E.c1.main.0.weight"].shape[:2]
    cells = [tensors[name] for name in tensors if re.fullmatch(r"convcell\.cell_list\.\d+\.conv\.weight", name)]
    return {
        "in_steps": config.get("pre_seq_length", 10),
        "out_steps": config.get("aft_seq_length", 10),
        "channels": channels,
        "base_width": base,
        "widths": tuple(len(cell) // 4 for cell in cells),
        "kernel": cells[0].shape[-1],
        "physics_kernel": tensors["phycell.cell_list.0.F.conv1.weight"].shape[-1],
        "patch": 2 if config.get("patch_size") == 2 else 4,
    }


PHYDNET = Source(
    PhyDNet,
    _phydnet_options,
    lambda model: renamed(model, PHYDNET_NAMES),
    unused=r"^encoder\.(phycell|convcell)\.|^k2m\._(inv)?M\d$",
)

# -- MAU -------------------------------------------------------------------------------------------

MAU_NAMES = {
    r"^cells\.": "cell_list.",
    r"\.conv_t\.": ".conv_t.0.",
    r"\.norm_t\.": ".conv_t.1.",
    r"\.conv_next\.": ".conv_t_next.0.",
    r"\.norm_next\.": ".conv_t_next.1.",
    r"\.norm_s\.": ".conv_s.1.",
    r"\.norm_query\.": ".conv_s_next.1.",
    r"^encoder\.0\.": "encoders.0.encoder_t_conv-1.",
    r"^decoder\.(\d+)\.": r"decoders.\1.c_decoder\1.",
    r"^conv_last\.": "srcnn.0.",
}


def _mau_names(model: Nowcaster) -> dict[str, str | Made]:
    """Two convolutions of the same field are one of ours; layers of the encoder after the first count from 0."""
    names: dict[str, str | Made] = {}
    for ours, official in renamed(model, MAU_NAMES).items():
        stem, _, leaf = official.rpartition(".")
        if stem.endswith(".conv_s"):
            names[ours] = Made((f"{stem}_next.0.{leaf}", f"{stem}.0.{leaf}"), lambda *parts: torch.cat(parts))
        elif layer := re.fullmatch(r"encoder\.(\d+)", stem):
            names[ours] = f"encoders.{layer[1]}.encoder_t{int(layer[1]) - 1}.{leaf}"
        else:
            names[ours] = official
    return names


def _mau_options(tensors: State, config: Config) -> dict[str, Any]:
    width, folded = tensors["encoders.0.encoder_t_conv-1.weight"].shape[:2]
    *_, height, side = tensors["cell_list.0.conv_t_next.1.weight"].shape
    patch = int(config.get("patch_size", 1))  # type: ignore[call-overload]
    downscale = 2 ** count(tensors, "decoders.{0}.c_decoder{0}.weight")
    return {
        "in_steps": config.get("pre_seq_length", 10),
        "out_steps": config.get("aft_seq_length", 10),
        "channels": folded // patch**2,
        "width": width,
        "layers": count(tensors, "cell_list.{}.conv_t.0.weight"),
        "kernel": tensors["cell_list.0.conv_t.0.weight"].shape[-1],
        "tau": config.get("tau", 5),
        "patch": patch,
        "downscale": downscale,
        "cell_mode": config.get("cell_mode", "normal"),
        "model_mode": config.get("model_mode", "normal"),
        "grid": (height * patch * downscale, side * patch * downscale),
    }


MAU_UNITS = Source(MAU, _mau_options, _mau_names, unused=r"^(merge|conv_last_sr)\.(weight|bias)$")
