"""Parity packs: what an official implementation returned for weights and frames from a recipe.

A pack holds no weights. Every tensor is drawn from (seed, official name), so a pack of nine million
parameters is as small as its outputs. These are the rules that convolutions and their norms need.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Pack:
    config: dict
    frames: Tensor
    outputs: dict[str, Tensor]
    meta: dict

    def weights(self) -> dict[str, Tensor]:
        """The official state dict."""
        shapes, seed, gain = (self.meta[key] for key in ("shapes", "seed", "gain"))
        return {name: draw(name, tuple(shape), seed, gain) for name, shape in shapes.items()}

    def excess(self, output: Tensor, name: str) -> float:
        """Largest error of one output as a share of what may be accepted; the pack keeps only the first channels."""
        want = self.outputs[name]
        if want.ndim == 4:
            output = output[:, : want.shape[1]]
        assert output.shape == want.shape
        return float((output - want).abs().max()) / self.meta["outputs"][name]["tolerance"]


def read(stem: str) -> Pack:
    """Reads a pack of ``tests/data``."""
    with np.load(DATA / f"{stem}.npz", allow_pickle=False) as file:
        meta = json.loads(str(file["meta"]))
        frames = torch.from_numpy(file["input/frames"].astype(np.float32) / np.float32(255))
        outputs = {
            key.removeprefix("output/"): torch.from_numpy(file[key]) for key in file if key.startswith("output/")
        }
    return Pack(meta["config"], frames, outputs, meta)


def draw(name: str, shape: tuple[int, ...], seed: int, gain: float) -> Tensor:
    """One tensor of the recipe: kernel, bias or scale of a norm."""
    normal = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())])).standard_normal(shape)
    if name.endswith("bias"):
        normal = 0.05 * normal
    elif len(shape) == 1:
        normal = 1 + 0.05 * normal
    else:
        normal = gain * normal / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(normal.astype(np.float32))
