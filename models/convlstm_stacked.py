"""Stacked ConvLSTM: convolutional LSTM cells one above the other, rolled out from frame to frame.

Shi et al. (2015), "Convolutional LSTM Network", arXiv:1506.04214, in the form that the benchmark OpenSTL (Tan et al.
2023, arXiv:2306.11249) compares with: folded frames, no peepholes, no biases, no separate forecaster.

The cells of the reference code also own two convolutions that nothing reads; they do not exist here. Until December
2023 (OpenSTL issue 68) it showed the candidate instead of the cell state, which then influenced nothing: the
published figures were made so, and weights from then need ``shown="candidate"``.

Shape letters: B batch, C channel, H height, W width of the folded frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from nowcast.core.errors import OptionError
from nowcast.models.blocks import FieldConv, lean
from nowcast.models.nowcaster import Published
from nowcast.models.predrnn import check_norm, check_stack
from nowcast.models.recurrent import Patched, Sampling, State

Shown = Literal["cell", "candidate"]


class ConvLSTMCell(nn.Module):
    """Gates in the order input, forget, candidate, output.

    Args:
        inputs: Channels that come from below.
        width: Channels of h and c.
        kernel: Side of the convolutions, odd.
        norm: Normalise what both convolutions give.
        grid: Height and width of fields that the norm is bound to; None: any.
        shown: What the output gate lets out; with ``candidate`` the cell state has no effect.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        kernel: int,
        norm: bool = False,
        grid: tuple[int, int] | None = None,
        shown: Shown = "cell",
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"kernel": kernel, "norm": norm, "grid": grid}
        self.conv_x = FieldConv(inputs, 4 * width, **made)
        self.conv_h = FieldConv(width, 4 * width, **made)
        self.forget = {"cell": _forget, "candidate": _show_candidate}[shown]

    def forward(self, x_BCHW: Tensor, state: State, highway_BCHW: Tensor | None = None) -> State:
        """One step: the next (h, c) from that of the step before; None: zeros.

        What is on the highway (MotionRNN) is shown where the output gate is shut.
        """
        h, c = state or (None, None)
        (gates,) = self.conv_h.added_to(self.conv_x(x_BCHW), x_NCHW=h)
        return lean(self.forget, gates, c, highway_BCHW)


def _forget(gates: Tensor, c: Tensor | None, highway: Tensor | None) -> tuple[Tensor, Tensor]:
    i, f, g, o = gates.chunk(4, dim=1)
    new = i.sigmoid() * g.tanh()
    c = new if c is None else new + f.sigmoid() * c
    return _shown(o.sigmoid(), c.tanh(), highway), c


def _show_candidate(gates: Tensor, c: Tensor | None, highway: Tensor | None) -> tuple[Tensor, None]:
    _, _, g, o = gates.chunk(4, dim=1)
    return _shown(o.sigmoid(), g.tanh(), highway), None


def _shown(gate: Tensor, content: Tensor, highway: Tensor | None) -> Tensor:
    return gate * content if highway is None else gate * content + (1 - gate) * highway


class StackedConvLSTM(Patched):
    """Layers of ConvLSTM cells on folded frames.

    Args:
        widths: State channels per layer.
        kernel: Side of the convolutions, odd.
        patch: Side of the patches that frames are folded into.
        layer_norm: Normalise what every convolution gives.
        grid: Height and width of the frames that the norms are bound to; None: any.
        shown: What the output gates let out: the ``cell`` state, or the ``candidate`` for OpenSTL's old weights.
        sampling: See ``Recurrent``.
        sampling_until: See ``Recurrent``.
        reverse_input: See ``Recurrent``.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Shi et al. (2015), arXiv:1506.04214; Tan et al. (2023), arXiv:2306.11249"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "openstl-s": {"widths": (128,) * 4, "kernel": 5, "patch": 4},
        "openstl-l": {"widths": (192,) * 4, "kernel": 5, "patch": 4},
        "debug": {"widths": (16, 16), "kernel": 3, "patch": 2},
    }
    PUBLISHED: ClassVar[dict[str, Published]] = {
        "openstl-s": Published(15_083_520, unused=3_407_872),
        "openstl-l": Published(33_782_784, unused=7_667_712),
    }

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
        shown: Shown = "cell",
        sampling: Sampling = "scheduled",
        sampling_until: float = 0.625,
        reverse_input: bool = False,
    ) -> None:
        check_stack(widths, kernel)
        check_norm(layer_norm, grid)
        if shown not in ("cell", "candidate"):
            raise OptionError(f"Unknown shown {shown!r}; known: cell, candidate.")
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
        self.cells = nn.ModuleList(
            ConvLSTMCell(inputs, width, kernel=kernel, norm=layer_norm, grid=self.field, shown=shown)
            for inputs, width in zip((self.folded, *widths[:-1]), widths, strict=True)
        )

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Map (embedded frame, (h, c) of every layer) to (hidden state of the top, next state)."""
        made = []
        for cell, before in zip(self.cells, state or [None] * len(self.cells), strict=True):
            x, c = cell(x, before)
            made.append((x, c))
        return x, made
