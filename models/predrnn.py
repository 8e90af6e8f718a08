"""PredRNN: recurrent network with a spatiotemporal memory.

Wang, Long, Wang, Gao, Yu (2017), "PredRNN: Recurrent Neural Networks for Predictive Learning using
Spatiotemporal LSTMs", NeurIPS 30; journal version with PredRNN-V2: arXiv:2103.09504. Sizes and recipe follow
github.com/thuml/predrnn-pytorch; OpenSTL's network is the same.

Every layer keeps a cell state c of its own. One more memory m is shared: it climbs from layer to layer, and
from the top at one step to the bottom at the next (zigzag), so that what was seen at fine scale is not lost.

Unlike the reference code the grid is free. Its layer norm scales every element of a field and so binds the
weights to one grid: option ``grid``. Without, scale and shift are per channel, as in the TensorFlow original.
Zero states are left out of the first step instead of convolved.

Shape letters: B batch, C channel, H height, W width of the folded frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nowcast.core.errors import OptionError
from nowcast.models.blocks import FieldConv, lean
from nowcast.models.cms_lstm import BLOCKS, ContextEmbedding, SpatiotemporalExpression
from nowcast.models.nowcaster import Published
from nowcast.models.recurrent import Patched, Sampling, State


class Gates(NamedTuple):
    """What the gates are made of, before any sigmoid."""

    c_BCHW: Tensor
    """Input, forget, candidate of the cell state."""
    m_BCHW: Tensor
    """The same of the spatiotemporal memory."""
    o_BCHW: Tensor
    """Output, without the new memories."""


class STLSTMCell(nn.Module):
    """Spatiotemporal LSTM: one step of c in time and of m in space, and what is shown of both.

    Args:
        inputs: Channels that come from below.
        width: Channels of h, c and m.
        kernel: Side of the convolutions, odd.
        norm: Normalise what every convolution gives.
        grid: Height and width of fields that the norm is bound to; None: any.
    """

    def __init__(
        self, inputs: int, width: int, *, kernel: int, norm: bool = False, grid: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"kernel": kernel, "norm": norm, "grid": grid}
        self.width = width
        self.conv_x = FieldConv(inputs, 7 * width, **made)
        self.conv_h = FieldConv(width, 4 * width, **made)
        self.conv_m = FieldConv(width, 3 * width, **made)
        self.conv_o = FieldConv(2 * width, width, **made)
        self.conv_last = nn.Conv2d(2 * width, width, 1, bias=False)

    def forward(
        self, x_BCHW: Tensor, state: State, m_BCHW: Tensor | None, highway_BCHW: Tensor | None = None
    ) -> tuple[State, Tensor, Gates]:
        """One step.

        Args:
            x_BCHW: From below.
            state: (h, c) of the step before; None: zeros.
            m_BCHW: Memory from below; None: zeros.
            highway_BCHW: Shown where the output gate is shut (MotionRNN); None: nothing.

        Returns:
            The next (h, c), the memory for the layer above, and the gates.
        """
        h, c = state or (None, None)
        gates = self.gates(x_BCHW, h, m_BCHW)
        both = lean(_remember, gates.c_BCHW, gates.m_BCHW, c, m_BCHW)
        h = lean(_show, gates.o_BCHW + self.conv_o(both), self.conv_last(both), highway_BCHW)
        c, m = both.chunk(2, dim=1)
        return (h, c), m, gates

    def gates(self, x_BCHW: Tensor, h_BCHW: Tensor | None, m_BCHW: Tensor | None) -> Gates:
        """Add up the convolutions, each with its own order: x i f g, i' f' g', o; h i f g, o; m i' f' g'."""
        n = self.width
        of_c, of_m, of_o = self.conv_x(x_BCHW).split((3 * n, 3 * n, n), dim=1)
        of_c, of_o = self.conv_h.added_to(of_c, of_o, x_NCHW=h_BCHW)
        (of_m,) = self.conv_m.added_to(of_m, x_NCHW=m_BCHW)
        return Gates(of_c, of_m, of_o)


def increment(gates_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the addition to a memory, and the share of the old one that stays: most of it at first."""
    i, f, g = gates_BCHW.chunk(3, dim=1)
    return i.sigmoid() * g.tanh(), (f + 1).sigmoid()


def _remember(gates_c: Tensor, gates_m: Tensor, c: Tensor | None, m: Tensor | None) -> Tensor:
    """Return the new c and m, side by side."""
    made = []
    for gates, old in ((gates_c, c), (gates_m, m)):
        new, kept = increment(gates)
        made.append(new if old is None else new + kept * old)
    return torch.cat(made, dim=1)


def _show(gate: Tensor, content: Tensor, highway: Tensor | None) -> Tensor:
    gate = gate.sigmoid()
    shown = gate * content.tanh()
    return shown if highway is None else shown + (1 - gate) * highway


class ExpressiveCell(STLSTMCell):
    """Spatiotemporal LSTM between the two blocks of CMS-LSTM, whose paper reports that they help, without code.

    Context embedding comes before the gates; expression mixes the hidden state with the spatiotemporal memory.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        kernel: int,
        norm: bool = False,
        grid: tuple[int, int] | None = None,
        context: bool,
        expression: bool,
    ) -> None:
        super().__init__(inputs, width, kernel=kernel, norm=norm, grid=grid)
        self.context = ContextEmbedding(inputs, width, kernel=kernel, grid=grid) if context else None
        self.expression = SpatiotemporalExpression(width, grid=grid) if expression else None

    def forward(
        self, x_BCHW: Tensor, state: State, m_BCHW: Tensor | None, highway_BCHW: Tensor | None = None
    ) -> tuple[State, Tensor, Gates]:
        """Map (x, (h, c), m, highway) to the next (h, c), the next m and the gates; None stands for zeros."""
        x, (h, c) = x_BCHW, state or (None, None)
        if self.context is not None:
            x, h = self.context(x, h)
        (h, c), m, gates = super().forward(x, (h, c), m_BCHW, highway_BCHW)
        if self.expression is not None:
            h, m = self.expression(h, m)
        return (h, c), m, gates


class PredRNN(Patched):
    """Layers of spatiotemporal LSTM cells on folded frames.

    Args:
        widths: State channels per layer, all the same since the memory passes through all of them.
        kernel: Side of the convolutions, odd.
        patch: Side of the patches that frames are folded into.
        layer_norm: Normalise what every convolution gives.
        grid: Height and width of the frames that the norms are bound to, as in published weights; None: any.
        context: Context embedding of CMS-LSTM before the gates.
        expression: Expression block of CMS-LSTM after every cell.
        sampling: See ``Recurrent``.
        sampling_until: See ``Recurrent``.
        reverse_input: See ``Recurrent``.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Wang et al. (2017), NeurIPS 30; arXiv:2103.09504"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "published": {"widths": (128,) * 4, "kernel": 5, "patch": 4},
        "debug": {"widths": (12, 12), "kernel": 3, "patch": 2},
    }
    PUBLISHED: ClassVar[dict[str, Published]] = {"published": Published(23_838_720)}

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        widths: Sequence[int] = (128,) * 4,
        kernel: int = 5,
        patch: int = 4,
        layer_norm: bool = False,
        grid: Sequence[int] | None = None,
        context: bool = False,
        expression: bool = False,
        sampling: Sampling = "scheduled",
        sampling_until: float = 0.625,
        reverse_input: bool = False,
    ) -> None:
        check_stack(widths, kernel, same="the memory")
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
            blocks=BLOCKS if expression else 1,
        )
        below = (self.folded, *widths[:-1])
        plain = not (context or expression)
        cell = STLSTMCell if plain else partial(ExpressiveCell, context=context, expression=expression)
        self.cells = nn.ModuleList(
            cell(inputs, width, kernel=kernel, norm=layer_norm, grid=self.field)
            for inputs, width in zip(below, widths, strict=True)
        )

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Step with the state of every layer, and the memory that left the top."""
        states, m = state or ([None] * len(self.cells), None)
        made = []
        for cell, before in zip(self.cells, states, strict=True):
            (x, c), m, _ = cell(x, before, m)
            made.append((x, c))
        return x, (made, m)


def check_stack(widths: Sequence[int], kernel: int, *, same: str = "") -> None:
    """Refuses a stack of layers that cannot work.

    Args:
        widths: State channels per layer.
        kernel: Side of the convolutions.
        same: What passes through all layers, so that they must be equally wide; empty: nothing.

    Raises:
        ValueError: What is wrong, in one sentence.
    """
    if not widths or min(widths) < 1:
        raise OptionError(f"widths names the channels of one layer or more, got {widths}.")
    if same and len(set(widths)) > 1:
        raise OptionError(f"All widths must be the same, since {same} passes through all layers; got {widths}.")
    if kernel < 1 or kernel % 2 == 0:
        raise OptionError(f"kernel must be odd, got {kernel}.")


def check_norm(layer_norm: bool, grid: Sequence[int] | None) -> None:
    """Refuses a grid that nothing would be bound to.

    Raises:
        ValueError: If there is no norm.
    """
    if grid is not None and not layer_norm:
        raise OptionError("Only the norms can be bound to a grid: give grid together with layer_norm.")
