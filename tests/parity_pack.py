"""Parity packs: what an official implementation returned for weights and frames from a recipe.

A pack holds no weights. Every tensor is drawn from (seed, official name), so a pack of a hundred million
parameters is as small as its outputs. Frames: (B, T, C, H, W) in [0, 1].
"""

from __future__ import annotations

import json
import math
import re
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tests.paths import ROOT

DATA = ROOT / "tests" / "parity"
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Pack:
    config: dict
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    meta: dict

    @property
    def frames(self) -> Tensor:
        return self.inputs["frames"]

    @property
    def shapes(self) -> Shapes:
        """Official name -> shape."""
        return {name: tuple(shape) for name, shape in self.meta["shapes"].items()}

    def weights(self) -> dict[str, Tensor]:
        """The official state dict."""
        return drawn(self.shapes, self.meta["seed"], self.meta["gain"])

    def excess(self, output: Tensor, name: str = "prediction") -> float:
        """Largest error of one output as a share of what may be accepted.

        Of some outputs a pack keeps only a few frames, or the first channels.
        """
        want, about = self.outputs[name], self.meta["outputs"][name]
        if (kept := about.get("frames")) and output.shape[1] > len(kept):
            output = output[:, kept]
        if want.ndim == 4:
            output = output[:, : want.shape[1]]
        assert output.shape == want.shape
        return float((output - want).abs().max()) / about["tolerance"]


def stems() -> list[str]:
    """All packs there are."""
    return sorted(path.stem for path in DATA.glob("*.npz"))


def read(stem: str) -> Pack:
    """Reads a pack of ``tests/parity``."""
    with np.load(DATA / f"{stem}.npz", allow_pickle=False) as file:
        meta = json.loads(str(file["meta"]))
        inputs = {key.removeprefix("input/"): _values(file[key]) for key in file if key.startswith("input/")}
        outputs = {
            key.removeprefix("output/"): torch.from_numpy(file[key]) for key in file if key.startswith("output/")
        }
    return Pack(meta["config"], inputs, outputs, meta)


def _values(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32) / np.float32(255) if array.dtype == np.uint8 else array)


def drawn(shapes: Shapes, seed: int, gain: float) -> dict[str, Tensor]:
    """A whole state dict of the recipe."""
    return {name: draw(name, shape, seed, gain) for name, shape in shapes.items()}


def draw(name: str, shape: tuple[int, ...], seed: int, gain: float) -> Tensor:
    """One tensor of the recipe; the last part of its name, and its shape, tell what it is."""
    normal = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())])).standard_normal(shape)
    mean, spread = _law(re.split(r"[./]", name)[-1], name, shape, gain)
    values = mean + spread * (np.abs(normal) if name.endswith("running_var") else normal)
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _law(leaf: str, name: str, shape: tuple[int, ...], gain: float) -> tuple[float, float]:
    """Mean and spread."""
    if leaf in ("running_mean", "running_var"):
        return {"running_mean": (0, 0.1), "running_var": (1, 0.2)}[leaf]
    if leaf in ("bias", "beta"):
        return 0, 0.05
    if leaf in ("weight", "gamma") and (len(shape) in (1, 3) or "norm" in name):
        return 1, 0.05
    if leaf.startswith(("gamma_", "layer_scale")):
        return 0.5, 0.1
    if leaf in ("weight", "kernel"):  # TensorFlow's kernels have their outputs last
        return 0, gain / math.sqrt(math.prod(shape[:-1] if leaf == "kernel" else shape[1:]))
    return 0, 0.5
