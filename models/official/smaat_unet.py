"""github.com/HansBambel/SmaAt-UNet (no licence file): SmaAt-UNet and the U-Net that it is compared with."""

from __future__ import annotations

from typing import Any

from nowcast.models.nowcaster import Nowcaster
from nowcast.models.official import Config, Source, State, renamed
from nowcast.models.smaat_unet import SmaAtUNet
from nowcast.models.unet import UNet

UNITS = {
    r"^down\.0\.": "inc.double_conv.",
    r"^down\.(\d+)\.": r"down\1.maxpool_conv.1.double_conv.",
    r"^(up\d+)\.": r"\1.conv.double_conv.",
    r"^enlarge(\d+)\.": r"up\1.up.",
    r"^head\.": "outc.conv.",
}
ATTENTION = {
    r"\.channel\.0\.": ".channel_att.MLP.1.",
    r"\.channel\.2\.": ".channel_att.MLP.3.",
    r"\.pixel\.0\.": ".spatial_att.conv.",
    r"\.pixel\.1\.": ".spatial_att.bn.",
}


def _sizes(tensors: State, config: Config, inputs: int) -> dict[str, Any]:
    """Frames of one channel, where the config does not tell how many channels each has."""
    outputs, width = tensors["outc.conv.weight"].shape[:2]
    channels = int(config.get("channels", 1))  # type: ignore[call-overload]
    return {
        "in_steps": inputs // channels,
        "out_steps": outputs // channels,
        "channels": channels,
        "width": width,
        "levels": 1 + len({name.split(".")[0] for name in tensors if name.startswith("down")}),
        "bilinear": "up1.up.weight" not in tensors,
        "pad_inside": True,  # another function, on grids that do not divide by 16, than the one they were trained for
    }


def _unet_options(tensors: State, config: Config) -> dict[str, Any]:
    return _sizes(tensors, config, tensors["inc.double_conv.0.weight"].shape[1])


def _smaat_options(tensors: State, config: Config) -> dict[str, Any]:
    wide = tensors["inc.double_conv.0.depthwise.weight"].shape[0]
    per_layer = tensors["inc.double_conv.3.depthwise.weight"].shape[0] // tensors["outc.conv.weight"].shape[1]
    attention = [tensor.shape for name, tensor in tensors.items() if name.endswith(".channel_att.MLP.1.weight")]
    return _sizes(tensors, config, wide // per_layer) | {
        "kernels_per_layer": per_layer,
        # Widths are divided by it and rounded down, so the finest level alone may not tell it.
        "reduction": next(r for r in range(1, attention[0][1] + 1) if all(w // r == n for n, w in attention)),
    }


def _counted(model: Nowcaster) -> dict[str, str]:
    """Name all tensors, counted from 1: the way up from the coarsest, attention from the finest level."""
    rules: dict[str, str] = {}
    for level in range(len(model.widths)):  # type: ignore[arg-type]
        from_coarsest = len(model.widths) - 1 - level  # type: ignore[arg-type]
        rules |= {rf"^up\.{level}\.": f"up{from_coarsest}.", rf"^enlarge\.{level}\.": f"enlarge{from_coarsest}."}
        rules[rf"^attention\.{level}\."] = f"cbam{level + 1}."
    return rules


def _unet_names(model: Nowcaster) -> dict[str, str]:
    return renamed(model, _counted(model) | UNITS)


def _smaat_names(model: Nowcaster) -> dict[str, str]:
    return renamed(model, _counted(model) | UNITS | ATTENTION)


UNET = Source(UNet, _unet_options, _unet_names)
SMAAT_UNET = Source(SmaAtUNet, _smaat_options, _smaat_names)
