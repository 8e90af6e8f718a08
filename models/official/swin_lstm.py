"""github.com/SongTang-x/SwinLSTM (MIT): SwinLSTM-B and SwinLSTM-D."""

from __future__ import annotations

import math
from itertools import count
from typing import Any

from nowcast.models.nowcaster import Nowcaster
from nowcast.models.official import Config, Source, State, renamed
from nowcast.models.swin_lstm import SwinLSTMB, SwinLSTMD

LAYERS = {
    r"^cells\.": "ST.layers.",
    r"^down\.": "Downsample.layers.",
    r"^up\.": "Upsample.layers.",
    r"\.blocks\.": ".Swin.layers.",
    r"\.fuse\.": ".red.",
    r"\.table$": ".attn.relative_position_bias_table",
    r"\.qkv\.": ".attn.qkv.",
    r"\.project\.": ".attn.proj.",
    r"\.mlp([12])\.": r".mlp.fc\1.",
    r"^merge\.(\d+)\.": r"Downsample.downsample.\1.",
    r"^expand\.(\d+)\.": r"Upsample.upsample.\1.",
    r"(downsample\.\d+)\.linear": r"\1.reduction",
    r"(upsample\.\d+)\.linear": r"\1.expand",
}
BASE = LAYERS | {
    r"^embedding\.conv\.": "ST.patch_embed.proj.",
    r"^embedding\.norm\.": "ST.patch_embed.norm.",
    r"^unembedding\.conv\.": "ST.PatchInflated.ConvT.",
}
DEEPER = LAYERS | {
    r"^embedding\.conv\.": "Downsample.patch_embed.proj.",
    r"^embedding\.norm\.": "Downsample.patch_embed.norm.",
    r"^unembedding\.conv\.": "Upsample.Unembed.Conv.",
}
COMPUTED = r"\.attn_mask$|\.relative_position_index$"
WITHOUT_CONTEXT = r"\.Swin\.layers\.\d*[13579]\.red\."
"""Every other block has a layer for a context that it is never given."""


def _base_options(tensors: State, config: Config) -> dict[str, Any]:
    depths, heads, windows = _cells(tensors, "ST")
    drop_path = config.get("drop_path_rate", 0.1)
    return _frames(tensors, config, "ST") | {
        "window": windows[0],
        "depths": depths,
        "heads": heads,
        "drop_path": drop_path,
    }


def _deeper_options(tensors: State, config: Config) -> dict[str, Any]:
    depths, heads, windows = _cells(tensors, "Downsample")
    depths_up, heads_up, windows_up = _cells(tensors, "Upsample")
    return _frames(tensors, config, "Downsample") | {
        "window": (*windows, windows_up[0]),
        "depths": depths,
        "heads": heads,
        "depths_up": depths_up,
        "heads_up": heads_up,
    }


def _frames(tensors: State, config: Config, part: str) -> dict[str, Any]:
    width, channels, _, patch = tensors[f"{part}.patch_embed.proj.weight"].shape
    return {
        "in_steps": config.get("T_in", config.get("num_frames_input", 10)),
        "out_steps": config.get("T_out", config.get("num_frames_output", 10)),
        "channels": channels,
        "patch": patch,
        "width": width,
    }


def _cells(tensors: State, part: str) -> tuple[list[int], list[int], list[int]]:
    """Blocks, heads and window of every cell, in the order in which they run."""
    depths, heads, windows = [], [], []
    for cell in range(_many(tensors, f"{part}.layers.{{}}.Swin.layers.0.norm1.weight")):
        blocks = f"{part}.layers.{cell}.Swin.layers."
        table = tensors[f"{blocks}0.attn.relative_position_bias_table"]
        depths.append(_many(tensors, blocks + "{}.norm1.weight"))
        heads.append(table.shape[1])
        windows.append((math.isqrt(table.shape[0]) + 1) // 2)
    return depths, heads, windows


def _many(tensors: State, name: str) -> int:
    return next(n for n in count() if name.format(n) not in tensors)


def _base_names(model: Nowcaster) -> dict[str, str]:
    return renamed(model, BASE)


def _deeper_names(model: Nowcaster) -> dict[str, str]:
    return renamed(model, DEEPER)


SWIN_LSTM_B = Source(SwinLSTMB, _base_options, _base_names, unused=f"{COMPUTED}|{WITHOUT_CONTEXT}")
SWIN_LSTM_D = Source(
    SwinLSTMD, _deeper_options, _deeper_names, unused=rf"{COMPUTED}|{WITHOUT_CONTEXT}|^Upsample\.patch_embed\."
)
