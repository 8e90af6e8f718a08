"""PredRNN++: causal LSTM cells, and a highway for gradients between the two lowest layers.

Wang, Gao, Long, Wang, Yu (2018), "PredRNN++: Towards A Resolution of the Deep-in-Time Dilemma in Spatiotemporal
Predictive Learning", arXiv:1804.06300. Gate orders follow OpenSTL's PyTorch version; github.com/Yunbo426/predrnn-pp
(TensorFlow) orders and normalises otherwise and has other widths.

In a causal cell the memory m is updated after the cell state c and reads it, so a step is deeper than PredRNN's.
The gradient highway unit carries its state past that depth.

OpenSTL's cells also own a convolution that nothing reads; it does not exist here. Until December 2023 (OpenSTL issue
68) what should read the cell state read the memory: the published figures were made so, and weights from then need
``conv_c_reads="m"``. Its highway unit cannot run with layer norm; here the norm covers both its gates. Zero states
are left out of the first step instead of convolved.

Shape letters: B batch, C channel, H height, W width of the folded frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nowcast.core.errors import OptionError
from nowcast.models.blocks import FieldConv, lean
from nowcast.models.nowcaster import Published
from nowcast.models.predrnn import check_norm, check_stack, increment
from nowcast.models.recurrent import Patched, Sampling, State


class CausalLSTMCell(nn.Module):
    """Causal LSTM: the cell state is renewed first, then the memory with the help of it.

    Args:
        inputs: Channels that come from below.
        memory: Channels of the memory that comes from below.
        width: Channels of h, c and the memory that leaves.
        kernel: Side of the convolutions, odd.
        norm: Normalise what every convolution gives.
        grid: Height and width of fields that the norm is bound to; None: any.
        conv_c_reads: ``m`` repeats OpenSTL's old mistake.
    """

    def __init__(
        self,
        inputs: int,
        memory: int,
        width: int,
        *,
        kernel: int,
        norm: bool = False,
        grid: tuple[int, int] | None = None,
        conv_c_reads: Literal["c", "m"] = "c",
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"kernel": kernel, "norm": norm, "grid": grid}
        self.width, self.conv_c_reads = width, conv_c_reads
        self.conv_x = FieldConv(inputs, 7 * width, **made)
        self.conv_h = FieldConv(width, 4 * width, **made)
        self.conv_c = FieldConv(width, 3 * width, **made)
        self.conv_m = FieldConv(memory, 3 * width, **made)
        self.conv_c2m = FieldConv(width, 4 * width, **made)
        self.conv_om = FieldConv(width, width, **made)
        self.conv_last = nn.Conv2d(2 * width, width, 1, bias=False)

    def forward(self, x_BCHW: Tensor, state: State, m_BCHW: Tensor | None) -> tuple[State, Tensor]:
        """One step: the next (h, c), and the memory for the layer above; None stands for zeros.

        Orders: x i f g, i' f' g', o; h i f g, o; c i f g; m i' f', content; the new c i' g' f', o.
        """
        h, c = state or (None, None)
        n = self.width
        of_c, of_m, of_o = self.conv_x(x_BCHW).split((3 * n, 3 * n, n), dim=1)
        of_c, of_o = self.conv_h.added_to(of_c, of_o, x_NCHW=h)
        (of_c,) = self.conv_c.added_to(of_c, x_NCHW=c if self.conv_c_reads == "c" else m_BCHW)
        c = lean(_remember, of_c, c)
        i, f, g = of_m.chunk(3, dim=1)
        i, g, f, of_o = self.conv_c2m.added_to(i, g, f, of_o, x_NCHW=c)
        old = self.conv_m.of(m_BCHW)
        if old is not None:
            old_i, old_f, old = old.chunk(3, dim=-3)
            i, f = i + old_i, f + old_f
        m = lean(_memorise, i, f, g, old)
        (of_o,) = self.conv_om.added_to(of_o, x_NCHW=m)
        h = lean(_show, of_o, self.conv_last(torch.cat([c, m], dim=1)))
        return (h, c), m


def _remember(gates: Tensor, c: Tensor | None) -> Tensor:
    new, kept = increment(gates)
    return new if c is None else new + kept * c


def _memorise(i: Tensor, f: Tensor, g: Tensor, old: Tensor | None) -> Tensor:
    new = i.sigmoid() * g.tanh()
    return new if old is None else new + (f + 1).sigmoid() * old.tanh()


def _show(gate: Tensor, content: Tensor) -> Tensor:
    return gate.tanh() * content.tanh()


class GradientHighway(nn.Module):
    """Gradient highway unit: one gate decides how much of its state is renewed."""

    def __init__(self, width: int, *, kernel: int, norm: bool = False, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        made: dict[str, Any] = {"kernel": kernel, "norm": norm, "grid": grid}
        self.conv_x = FieldConv(width, 2 * width, **made)
        self.conv_z = FieldConv(width, 2 * width, **made)
        for conv in (self.conv_x, self.conv_z):  # as in both codes
            nn.init.uniform_(conv[0].weight, -0.001, 0.001)  # type: ignore[arg-type]

    def forward(self, x_BCHW: Tensor, z_BCHW: Tensor | None) -> Tensor:
        """Return the next state; None stands for zeros."""
        (gates,) = self.conv_z.added_to(self.conv_x(x_BCHW), x_NCHW=z_BCHW)
        return lean(_renew, gates, z_BCHW)


def _renew(gates: Tensor, z: Tensor | None) -> Tensor:
    new, share = gates.chunk(2, dim=1)
    new, share = new.tanh(), share.sigmoid()
    return share * new if z is None else torch.lerp(z, new, share)


class PredRNNpp(Patched):
    """Layers of causal LSTM cells on folded frames, with a gradient highway above the lowest.

    Args:
        widths: State channels per layer, of two layers or more.
        kernel: Side of the convolutions, odd.
        patch: Side of the patches that frames are folded into.
        layer_norm: Normalise what every convolution gives.
        grid: Height and width of the frames that the norms are bound to; None: any.
        conv_c_reads: ``c``, the cell state, or ``m``, the memory, for OpenSTL's old weights.
        sampling: See ``Recurrent``.
        sampling_until: See ``Recurrent``.
        reverse_input: See ``Recurrent``.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Wang et al. (2018), arXiv:1804.06300"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "published": {"widths": (128, 64, 64, 64), "kernel": 5, "patch": 4, "layer_norm": True},
        "openstl": {"widths": (128,) * 4, "kernel": 5, "patch": 4},
        "debug": {"widths": (12, 8), "kernel": 3, "patch": 2},
    }
    PUBLISHED: ClassVar[dict[str, Published]] = {"openstl": Published(38_584_320, unused=3_276_800)}

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        widths: Sequence[int] = (128, 64, 64, 64),
        kernel: int = 5,
        patch: int = 4,
        layer_norm: bool = False,
        grid: Sequence[int] | None = None,
        conv_c_reads: Literal["c", "m"] = "c",
        sampling: Sampling = "scheduled",
        sampling_until: float = 0.625,
        reverse_input: bool = False,
    ) -> None:
        _check(widths, kernel, conv_c_reads)
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
        made: dict[str, Any] = {"kernel": kernel, "norm": layer_norm, "grid": self.field}
        below, memories = (self.folded, *widths[:-1]), (widths[-1], *widths[:-1])
        self.cells = nn.ModuleList(
            CausalLSTMCell(*sizes, **made, conv_c_reads=conv_c_reads)
            for sizes in zip(below, memories, widths, strict=True)
        )
        self.highway = GradientHighway(widths[0], **made)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Step with the state of every layer, the memory that left the top, and that of the highway."""
        states, m, z = state or ([None] * len(self.cells), None, None)
        made = []
        for layer, (cell, before) in enumerate(zip(self.cells, states, strict=True)):
            (x, c), m = cell(x, before, m)
            made.append((x, c))
            if layer == 0:
                x = z = self.highway(x, z)
        return x, (made, m, z)


def _check(widths: Sequence[int], kernel: int, conv_c_reads: str) -> None:
    if conv_c_reads not in ("c", "m"):
        raise OptionError(f"Unknown conv_c_reads {conv_c_reads!r}; known: c, m.")
    check_stack(widths, kernel, same="what conv_c reads" if conv_c_reads == "m" else "")
    if len(widths) < 2:
        raise OptionError(f"The gradient highway needs a layer above and below it, got widths {widths}.")
