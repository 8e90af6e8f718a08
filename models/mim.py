"""MIM: memory in memory, two recurrent cells in the place of a forget gate.

Wang, Zhang, Zhu, Long, Wang, Yu (2019), "Memory In Memory: A Predictive Neural Network for Learning Higher-Order
Non-Stationarity from Spatiotemporal Dynamics", arXiv:1811.07490. Gate orders follow OpenSTL's PyTorch version of
github.com/Yunbo426/MIM (TensorFlow).

The lowest layer is PredRNN's. In every layer above, MIM-N follows the difference between two hidden states (what is
not stationary) and MIM-S reads it together with the cell state (what is), and gives what is kept of it.

OpenSTL keeps the state of MIM-S from one batch to the next and lets no gradient through it. Here every clip begins
with zeros, and the gradient passes unless ``detached``. Peepholes are one weight per channel; per element, as in
published weights, they bind the network to one grid: option ``grid``. What OpenSTL computes of zeros in the first
step, and the convolutions of MIM-N that nothing reads, are left out.

Shape letters: B batch, C channel, H height, W width of the folded frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nowcast.models.blocks import FieldConv, lean
from nowcast.models.nowcaster import Published
from nowcast.models.predrnn import STLSTMCell, check_stack
from nowcast.models.recurrent import Patched, Sampling, State

Grid = tuple[int, int] | None
Pair = tuple[Tensor | None, Tensor | None]


class PeepholeCell(nn.Module):
    """MIM-N and MIM-S: a ConvLSTM whose gates see the cell state, in the order input, candidate, forget, output.

    Args:
        width: Channels of input, h and c.
        kernel: Side of the convolutions, odd.
        norm: Normalise what both convolutions give.
        grid: Height and width of fields that peepholes and norm are bound to; None: any.
    """

    def __init__(self, width: int, *, kernel: int, norm: bool = False, grid: Grid = None) -> None:
        super().__init__()
        made: dict[str, Any] = {"kernel": kernel, "norm": norm, "grid": grid}
        self.conv_h = FieldConv(width, 4 * width, **made)
        self.conv_x = FieldConv(width, 4 * width, **made)
        self.peep_c = nn.Parameter(torch.zeros(2 * width, *(grid or (1, 1))))
        self.peep_o = nn.Parameter(torch.zeros(width, *(grid or (1, 1))))

    def forward(self, x_BCHW: Tensor | None, h_BCHW: Tensor | None, c_BCHW: Tensor | None) -> Pair:
        """Return the next (h, c); None stands for zeros, which stay zeros where no norm shifts them."""
        of_x, gates = self.conv_x.of(x_BCHW), self.conv_h.of(h_BCHW)
        if of_x is not None:
            gates = of_x if gates is None else of_x + gates
        return (None, None) if gates is None else lean(_peephole, gates, c_BCHW, self.peep_c, self.peep_o)


def _peephole(gates: Tensor, c: Tensor | None, peep_c: Tensor, peep_o: Tensor) -> tuple[Tensor, Tensor]:
    i, g, f, o = gates.chunk(4, dim=-3)  # what norms make of zeros has no batch
    if c is None:
        c = i.sigmoid() * g.tanh()
    else:
        peep_i, peep_f = peep_c.chunk(2)
        i, f = i + peep_i * c, f + peep_f * c
        c = i.sigmoid() * g.tanh() + (f + 1).sigmoid() * c
    return (o + peep_o * c).sigmoid() * c.tanh(), c


class MIMBlock(nn.Module):
    """A spatiotemporal LSTM whose cell state is kept by MIM-S instead of a forget gate.

    Args:
        width: Channels of all it reads, holds and gives.
        kernel: Side of the convolutions, odd.
        norm: Normalise what every convolution gives.
        grid: Height and width of fields that peepholes and norms are bound to; None: any.
    """

    def __init__(self, width: int, *, kernel: int, norm: bool = False, grid: Grid = None) -> None:
        super().__init__()
        made: dict[str, Any] = {"kernel": kernel, "norm": norm, "grid": grid}
        self.width = width
        self.conv_t = FieldConv(width, 3 * width, **made)
        self.conv_s = FieldConv(width, 4 * width, **made)
        self.conv_x = FieldConv(width, 4 * width, **made)
        self.conv_last = nn.Conv2d(2 * width, width, 1, bias=False)
        self.stationary = PeepholeCell(width, **made)

    def forward(
        self, x_BCHW: Tensor, difference_BCHW: Tensor | None, state: State, m_BCHW: Tensor
    ) -> tuple[State, Tensor]:
        """One step.

        Args:
            x_BCHW: From below.
            difference_BCHW: From MIM-N; None: zeros.
            state: h, c and the cell state of MIM-S; None: zeros.
            m_BCHW: Memory from below.

        Returns:
            The next state, and the memory for the layer above.
        """
        h, c, s = state or (None, None, None)
        kept, s = self.stationary(difference_BCHW, c, s)
        # Orders: x and the memory i g f o; h i g o. The gates of c and of the memory share what x gives.
        i, g, f, o = self.conv_x(x_BCHW).chunk(4, dim=1)
        c_i, c_g, o = self.conv_t.added_to(i, g, o, x_NCHW=h)
        m_i, m_g, m_f, o = self.conv_s.added_to(i, g, f, o, x_NCHW=m_BCHW)
        c, m = lean(_keep, c_i, c_g, kept), lean(_remember, m_i, m_g, m_f, m_BCHW)
        h = lean(_show, o, self.conv_last(torch.cat([c, m], dim=1)))
        return (h, c, s), m


def _keep(i: Tensor, g: Tensor, kept: Tensor | None) -> Tensor:
    new = i.sigmoid() * g.tanh()
    return new if kept is None else new + kept


def _remember(i: Tensor, g: Tensor, f: Tensor, m: Tensor) -> Tensor:
    return (f + 1).sigmoid() * m + i.sigmoid() * g.tanh()


def _show(gate: Tensor, content: Tensor) -> Tensor:
    return gate.sigmoid() * content.tanh()


class MIM(Patched):
    """A spatiotemporal LSTM and, above it, layers of MIM blocks on folded frames.

    Args:
        widths: State channels per layer, all the same since the memory passes through all of them.
        kernel: Side of the convolutions, odd.
        patch: Side of the patches that frames are folded into.
        layer_norm: Normalise what every convolution gives.
        grid: Height and width of the frames that peepholes and norms are bound to; None: any.
        detached: Let no gradient through the state of MIM-S, as OpenSTL does.
        sampling: See ``Recurrent``.
        sampling_until: See ``Recurrent``.
        reverse_input: See ``Recurrent``.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Wang et al. (2019), arXiv:1811.07490"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "published": {"widths": (64,) * 4, "kernel": 5, "patch": 4, "layer_norm": True},
        "openstl": {"widths": (128,) * 4, "kernel": 5, "patch": 4, "grid": (64, 64)},
        "debug": {"widths": (8, 8), "kernel": 3, "patch": 2},
    }
    PUBLISHED: ClassVar[dict[str, Published]] = {"openstl": Published(38_043_648, unused=98_304)}

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        widths: Sequence[int] = (64,) * 4,
        kernel: int = 5,
        patch: int = 4,
        layer_norm: bool = False,
        grid: Sequence[int] | None = None,
        detached: bool = False,
        sampling: Sampling = "scheduled",
        sampling_until: float = 0.625,
        reverse_input: bool = False,
    ) -> None:
        check_stack(widths, kernel, same="the memory")
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
        self.detached = detached
        made: dict[str, Any] = {"kernel": kernel, "norm": layer_norm, "grid": self.field}
        width, above = widths[0], range(len(widths) - 1)
        self.lowest = STLSTMCell(self.folded, width, **made)
        self.nonstationary = nn.ModuleList(PeepholeCell(width, **made) for _ in above)
        self.blocks = nn.ModuleList(MIMBlock(width, **made) for _ in above)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Step with the state of the lowest layer, every MIM-N, every block, and the memory that left the top."""
        none = [None] * len(self.blocks)
        lowest, followed, blocks, m = state or (None, none, none, None)
        (x, c), m, _ = self.lowest(x, lowest, m)
        differences, followed = self._differences(x, lowest, followed)
        below, made = (x, c), []
        for block, difference, before in zip(self.blocks, differences, blocks, strict=True):
            (x, c, s), m = block(x, difference, before, m)
            made.append((x, c, s.detach() if self.detached and s is not None else s))
        return x, (below, followed, made, m)

    def _differences(self, h_BCHW: Tensor, before: State, followed: list[State]) -> tuple[list[Any], list[State]]:
        """Map the change of the lowest hidden state through every MIM-N, also to their states; nothing at first."""
        if before is None:
            return followed, followed
        difference, made = h_BCHW - before[0], []
        for cell, state in zip(self.nonstationary, followed, strict=True):
            difference, c = cell(difference, *(state or (None, None)))
            made.append((difference, c))
        return [h for h, _ in made], made
