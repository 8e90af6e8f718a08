"""MotionRNN: a recurrent network whose hidden states are warped along a motion that is remembered.

Wu, Yao, Wang, Long (2021), "MotionRNN: A Flexible Model for Video Prediction with Spacetime-Varying Motions",
arXiv:2103.02243. Sizes and recipe follow github.com/thuml/MotionRNN, which wraps PredRNN.

A MotionGRU stands between two layers: it follows how every pixel moves (transient variation and trend) and warps
the hidden state of the layer below. A motion highway carries what was there before the warping past the next layer.
Cells of other networks can be wrapped too: option ``cell``.

The released code begins every clip with random states, in a forecast too; here with zeros, as elsewhere. Its hooks
that were to scale the gradients of the motion by 0.1 have no effect and are left out. Its sampling positions stop at
a ring of zeros around the field, which is what sampling with zeros outside gives.

Shape letters: B batch, C channel, H height, W width of the folded frames, or half of them for motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.blocks import lean
from nowcast.models.convlstm_stacked import ConvLSTMCell
from nowcast.models.nowcaster import Published
from nowcast.models.predrnn import STLSTMCell, check_norm, check_stack
from nowcast.models.recurrent import Patched, Sampling, State

Cell = Literal["st-lstm", "convlstm"]
SIDE = 3
"""Of the neighbourhood that a pixel is put together from."""
NEIGHBOURS = SIDE**2
MOTION = 2 * NEIGHBOURS
"""Channels of a motion: rows of all neighbours, then columns."""
TREND = 0.5
"""Share of the trend that is renewed in a step."""


class MotionGRU(nn.Module):
    """Follows the motion of a field, and warps the field along it.

    Args:
        width: Channels of the field.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # Update, reset, candidate, and the weight of every neighbour: all that is read from the field at once.
        self.conv_x = nn.Conv2d(width, 3 * MOTION + NEIGHBOURS, 3, padding=1)
        self.conv_gates = nn.Conv2d(MOTION, 2 * MOTION, 3, padding=1, bias=False)
        self.conv_candidate = nn.Conv2d(MOTION, MOTION, 3, padding=1, bias=False)
        self.mix = nn.Conv2d(width * NEIGHBOURS, width, 1, bias=False)
        for conv in (self.conv_x, self.conv_gates, self.conv_candidate):
            nn.init.zeros_(conv.weight)

    def forward(self, x_BCHW: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the warped field, and the next (motion, trend); None: zeros."""
        motion, trend = state or (None, None)
        gates, candidate, weights = self.conv_x(x_BCHW).split((2 * MOTION, MOTION, NEIGHBOURS), dim=1)
        if motion is not None:
            gates = gates + self.conv_gates(motion)
            candidate = candidate + self.conv_candidate(lean(_reset, gates, motion))
        motion, trend = lean(_move, gates, candidate, motion, trend)
        return self.warp(x_BCHW, motion, weights.sigmoid()), (motion, trend)

    def warp(self, x_BCHW: Tensor, motion_BCHW: Tensor, weights_BCHW: Tensor) -> Tensor:
        """Deformable convolution: every pixel is mixed from weighted neighbours, each from where it moved to."""
        # Positions would lose their fractions in half precision.
        found = functional.grid_sample(x_BCHW.float(), positions(motion_BCHW.float()), align_corners=False)
        found = found.unflatten(2, (NEIGHBOURS, x_BCHW.shape[2])) * weights_BCHW[:, None]
        output: Tensor = self.mix(found.flatten(1, 2))
        return output


def positions(motion_BCHW: Tensor) -> Tensor:
    """Where the neighbours of every pixel are sampled: (B, 9 H, W, 2) columns and rows in -1..1 from edge to edge."""
    batch, _, height, width = motion_BCHW.shape
    row, column = (torch.arange(size, device=motion_BCHW.device, dtype=motion_BCHW.dtype) for size in (height, width))
    near = torch.arange(SIDE, device=motion_BCHW.device, dtype=motion_BCHW.dtype) - SIDE // 2
    down, right = motion_BCHW.reshape(batch, 2, SIDE, SIDE, height, width).unbind(1)
    down = down + near[:, None, None, None] + row[:, None]
    right = right + near[:, None, None] + column
    place = torch.stack([(2 * right + 1) / width - 1, (2 * down + 1) / height - 1], dim=-1)
    return place.reshape(batch, NEIGHBOURS * height, width, 2)


def _reset(gates: Tensor, motion: Tensor) -> Tensor:
    return gates[:, MOTION:].sigmoid() * motion


def _move(gates: Tensor, candidate: Tensor, motion: Tensor | None, trend: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the next motion and trend; the trend follows the motion of the step before."""
    update, candidate = gates[:, :MOTION].sigmoid(), candidate.tanh()
    if motion is None or trend is None:
        moved = update * candidate
        return moved, torch.zeros_like(moved)
    trend = torch.lerp(trend, motion, TREND)
    return torch.lerp(motion, candidate, update) + trend, trend


class MotionLayer(nn.Module):
    """What stands between two layers: down to half the grid, MotionGRU, up again, and a gate.

    Args:
        width: Channels of the hidden states.
        kernel: Side of the convolutions, odd.
    """

    def __init__(self, width: int, *, kernel: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, width // 4, kernel, 2, kernel // 2)
        self.motion = MotionGRU(width // 4)
        self.up = nn.ConvTranspose2d(width // 4, width, 4, 2, 1)
        self.gate = nn.Conv2d(2 * width, width, kernel, padding=kernel // 2)

    def forward(self, h_BCHW: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the hidden state where it moved to, and the next state of the MotionGRU."""
        warped, state = self.motion(self.down(h_BCHW), state)
        warped = self.up(warped)
        gate = self.gate(torch.cat([warped, h_BCHW], dim=1))
        return lean(_blend, gate, warped, h_BCHW), state


def _blend(gate: Tensor, warped: Tensor, still: Tensor) -> Tensor:
    return torch.lerp(still, warped, gate.sigmoid())


class MotionRNN(Patched):
    """Layers of recurrent cells on folded frames, with a MotionGRU between any two.

    Args:
        cell: ``st-lstm`` (PredRNN's) or ``convlstm``.
        widths: State channels per layer, of two layers or more; all the same, since the highway passes them.
        kernel: Side of the convolutions, odd.
        patch: Side of the patches that frames are folded into.
        layer_norm: Normalise what every convolution of the cells gives.
        grid: Height and width of the frames that the norms are bound to; None: any.
        sampling: See ``Recurrent``.
        sampling_until: See ``Recurrent``.
        reverse_input: See ``Recurrent``.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Wu et al. (2021), arXiv:2103.02243"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "published": {"widths": (64,) * 4, "kernel": 5, "patch": 4},
        "wide": {"widths": (128,) * 4, "kernel": 5, "patch": 4},  # as wide as PredRNN
        "debug": {"widths": (12, 12), "kernel": 3, "patch": 2},
    }
    PUBLISHED: ClassVar[dict[str, Published]] = {"published": Published(6_852_161), "wide": Published(26_911_553)}

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        cell: Cell = "st-lstm",
        widths: Sequence[int] = (64,) * 4,
        kernel: int = 5,
        patch: int = 4,
        layer_norm: bool = False,
        grid: Sequence[int] | None = None,
        sampling: Sampling = "scheduled",
        sampling_until: float = 0.625,
        reverse_input: bool = False,
    ) -> None:
        _check(cell, widths, kernel)
        check_norm(layer_norm, grid)
        super().__init__(
            in_steps=in_steps,
            out_steps=out_steps,
            channels=channels,
            sampling=sampling,
            sampling_until=sampling_until,
            reverse_input=reverse_input,
            hidden=widths[-1],
            patch=patch,
            grid=grid,
        )
        self.multiple = 2 * patch
        if self.grid and any(side % self.multiple for side in self.grid):
            raise OptionError(f"Sides of the grid must divide by twice the patch, got {self.grid} and {patch}.")
        self.cell = cell
        kind: Any = {"st-lstm": STLSTMCell, "convlstm": ConvLSTMCell}[cell]
        self.conv_first = nn.Conv2d(self.folded, widths[0], 1, bias=False)
        self.cells = nn.ModuleList(
            kind(inputs, width, kernel=kernel, norm=layer_norm, grid=self.field)
            for inputs, width in zip((self.folded, *widths[:-1]), widths, strict=True)
        )
        self.between = nn.ModuleList(MotionLayer(width, kernel=kernel) for width in widths[:-1])

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Step with (h, c) of every layer, (motion, trend) between them, and the memory that left the top."""
        layers, moving, m = state or ([None] * len(self.cells), [None] * len(self.between), None)
        highway = self.conv_first(x)
        made, moved = [], []
        for layer, (cell, before) in enumerate(zip(self.cells, layers, strict=True)):
            if self.cell == "st-lstm":
                (x, c), m, _ = cell(x, before, m, highway)
            else:
                x, c = cell(x, before, highway)
            highway = x
            if layer < len(self.between):
                x, motion = self.between[layer](x, moving[layer])
                moved.append(motion)
            made.append((x, c))
        return x, (made, moved, m)


def _check(cell: str, widths: Sequence[int], kernel: int) -> None:
    if cell not in ("st-lstm", "convlstm"):
        raise OptionError(f"Unknown cell {cell!r}; known: st-lstm, convlstm.")
    check_stack(widths, kernel, same="the motion highway")
    if len(widths) < 2 or widths[0] < 4:
        raise OptionError(f"Motion stands between layers of 4 channels or more, got widths {widths}.")
