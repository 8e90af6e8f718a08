"""ConvLSTM and ConvGRU encoder-forecaster.

Cells: Shi et al. (2015), "Convolutional LSTM Network", arXiv:1506.04214. Encoder-forecaster: Shi et al.
(2017), "Deep Learning for Precipitation Nowcasting", arXiv:1706.03458. Sizes, the normalised gates without
peepholes and the activation after the last layer follow github.com/jhhuang96/ConvLSTM-PyTorch.

An encoder reads the frames from fine to coarse; its final states start a forecaster that runs from
coarse to fine without input, so no forecast frame is ever fed back. Unlike the reference code the
lengths, the grid and the strides are free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.blocks import each_frame, in_portions
from nowcast.models.nowcaster import Nowcaster, Published, check_past
from nowcast.models.speedups.packed import Conv2d
from nowcast.models.speedups.winograd import convolve

State = tuple[Tensor, ...]
"""What a cell remembers; the hidden state h_BCHW comes first. Empty before the first step: all zeros."""

GROUP = 32
"""Channels normalised together; widths are multiples of it, so no group spans two gates."""


class GateConv(nn.Module):
    """Convolution of input and hidden state together, and the group normalisation that follows it."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, kernel: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.conv = Conv2d(inputs + hidden, outputs, kernel)
        self.norm = nn.GroupNorm(outputs // GROUP, outputs)

    def forward(self, x_BCHW: Tensor | None, h_BCHW: Tensor | None) -> Tensor:
        """Return the convolution, not yet normalised. None stands for zeros: their part of the kernel is left out."""
        channels = slice(self.inputs if x_BCHW is None else 0, self.inputs if h_BCHW is None else None)
        # One large convolution: convolving x for all steps beforehand costs 10 % more in training.
        fields = [part for part in (x_BCHW, h_BCHW) if part is not None]
        return convolve(fields, self.conv.weight, self.conv.bias, channels=channels)

    def affine(self, number: int = 0, *, of: int = 1) -> tuple[Tensor, Tensor]:
        """Scale and shift of the norm, or of one of several gates: no group spans two."""
        return self.norm.weight.chunk(of)[number], self.norm.bias.chunk(of)[number]


class LSTMCell(nn.Module):
    """State (h, c); gates in the order input, forget, candidate, output."""

    def __init__(self, inputs: int, width: int, *, kernel: int) -> None:
        super().__init__()
        self.gates = GateConv(inputs, width, 4 * width, kernel=kernel)

    def forward(self, x_BCHW: Tensor | None, state: State) -> State:
        """Map (x_BCHW, (h, c)) to the next (h, c); None and () stand for zeros."""
        h, c = state or (None, None)
        return in_portions(_updated, (self.gates(x_BCHW, h), c), self.gates.affine())


def _updated(gates_BCHW: Tensor, c: Tensor | None, weight: Tensor, bias: Tensor) -> State:
    i, f, g, o = _normalised(gates_BCHW, weight, bias).chunk(4, dim=1)
    fresh = i.sigmoid() * g.tanh()
    c = fresh if c is None else fresh + f.sigmoid() * c
    return o.sigmoid() * c.tanh(), c


def _normalised(x_BCHW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.group_norm(x_BCHW, len(weight) // GROUP, weight, bias)


class GRUCell(nn.Module):
    """State (h,); the update gate z multiplies the candidate, the reset gate r the old state."""

    def __init__(self, inputs: int, width: int, *, kernel: int) -> None:
        super().__init__()
        self.gates = GateConv(inputs, width, 2 * width, kernel=kernel)
        self.candidate = GateConv(inputs, width, width, kernel=kernel)

    def forward(self, x_BCHW: Tensor | None, state: State) -> State:
        """Map (x_BCHW, (h,)) to the next (h,); None and () stand for zeros."""
        (h,) = state or (None,)
        reset, update = (self.gates.affine(number, of=2) for number in (1, 0))
        gates = self.gates(x_BCHW, h)
        if h is not None:
            (shown,) = in_portions(_reset, (gates, h), reset)
        candidate = self.candidate(x_BCHW, None if h is None else shown)
        return in_portions(_mixed, (gates, candidate, h), (*update, *self.candidate.affine()))


def _reset(gates_BCHW: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> State:
    return (_normalised(gates_BCHW.chunk(2, dim=1)[1], weight, bias).sigmoid() * h,)


def _mixed(gates_BCHW: Tensor, candidate_BCHW: Tensor, h: Tensor | None, *affine: Tensor) -> State:
    z = _normalised(gates_BCHW.chunk(2, dim=1)[0], *affine[:2]).sigmoid()
    candidate = _normalised(candidate_BCHW, *affine[2:]).tanh()
    return (z * candidate if h is None else torch.lerp(h, candidate, z),)


class EncoderForecaster(Nowcaster):
    """Stages of a layer that shrinks frames and a recurrent cell, and the same stages backwards.

    All parts are listed from fine to coarse.

    Args:
        down: Frames -> input of the encoder's cell, per stage.
        encoder: Cells: (input or None, state) -> next state.
        forecaster: Cells that go on from the encoder's states; the coarsest is given no input.
        up: Hidden states of the forecaster's cell -> input of the finer one, and at last the frames.
        multiple: Product of all strides.
    """

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int,
        down: Iterable[nn.Module],
        encoder: Iterable[nn.Module],
        forecaster: Iterable[nn.Module],
        up: Iterable[nn.Module],
        multiple: int,
    ) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels)
        self.down, self.encoder = nn.ModuleList(down), nn.ModuleList(encoder)
        self.forecaster, self.up = nn.ModuleList(forecaster), nn.ModuleList(up)
        self.multiple = multiple

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        """Map past_BTCHW to future_BTCHW."""
        check_past(past_BTCHW, self)
        with self.cached_weights():
            return self.on_any_grid(lambda past: self.forecast(self.encode(past)), past_BTCHW)

    def encode(self, past_BTCHW: Tensor) -> list[State]:
        """Return the final state of every stage, finest first; sides must divide by the product of the strides."""
        frames: Sequence[Tensor] = past_BTCHW.unbind(1)
        states = []
        for down, cell in zip(self.down, self.encoder, strict=True):
            state, frames = self._unroll(cell, each_frame(down, frames), ())
            states.append(state)
        return states

    def forecast(self, states: list[State]) -> Tensor:
        """Return the frames that follow from the encoder's states."""
        inputs: Sequence[Tensor | None] = [None] * self.out_steps
        for up, cell, state in reversed(list(zip(self.up, self.forecaster, states, strict=True))):
            _, hidden = self._unroll(cell, inputs, state)
            inputs = frames = each_frame(up, hidden)
        return torch.stack(frames, dim=1)

    def _unroll(self, cell: nn.Module, frames: Sequence[Tensor | None], state: State) -> tuple[State, list[Tensor]]:
        """Run a cell over a sequence; return its final state and its hidden states."""
        hidden = []
        for x in frames:
            state = self.segment(cell, x, state)
            hidden.append(state[0])
        return state, hidden


class ConvEncoderForecaster(EncoderForecaster):
    """Encoder-forecaster of plain convolutional cells.

    Args:
        first_width: Channels at full resolution, before the last layer; the first convolution has as
            many times its stride, so that striding does not discard the detail it reads.
        widths: State channels per stage, finest first; multiples of 32.
        kernel: Side of the recurrent kernels, odd.
        strides: Downscaling before each stage: 1 or even.

    Raises:
        ValueError: If the options do not fit each other.
    """

    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "published": {"first_width": 16, "widths": (64, 96, 96), "kernel": 5, "strides": (1, 2, 2)},
        # For composites of 1000 pixels a side on two CPU cores: no state at full resolution.
        "small": {"first_width": 4, "widths": (32, 64, 64), "kernel": 3, "strides": (4, 2, 2)},
        "debug": {"first_width": 2, "widths": (32, 32), "kernel": 3, "strides": (2, 2)},
    }
    cell: ClassVar[type[LSTMCell] | type[GRUCell]]

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        first_width: int = 16,
        widths: Sequence[int] = (64, 96, 96),
        kernel: int = 5,
        strides: Sequence[int] = (1, 2, 2),
    ) -> None:
        _check(first_width, widths, kernel, strides)
        below = (first_width * strides[0], *widths[:-1])
        # The topmost cell has no input. Its input kernel exists only because published weights hold one.
        above = (*widths[1:], widths[-1])
        up = [_up(*sizes) for sizes in zip(widths, (first_width, *widths[1:]), strides, strict=True)]
        up[0].extend((Conv2d(first_width, channels, 1), nn.LeakyReLU(0.2, inplace=True)))
        super().__init__(
            in_steps=in_steps,
            out_steps=out_steps,
            channels=channels,
            multiple=math.prod(strides),
            up=up,
            down=[_down(*sizes) for sizes in zip((channels, *widths[:-1]), below, strides, strict=True)],
            encoder=[self.cell(inputs, width, kernel=kernel) for inputs, width in zip(below, widths, strict=True)],
            forecaster=[self.cell(inputs, width, kernel=kernel) for inputs, width in zip(above, widths, strict=True)],
        )


class ConvLSTM(ConvEncoderForecaster):
    """Encoder-forecaster of convolutional LSTM cells."""

    PAPER = "Shi et al. (2015), arXiv:1506.04214; (2017), arXiv:1706.03458"
    PUBLISHED: ClassVar = {"published": Published(9_032_225)}
    cell = LSTMCell


class ConvGRU(ConvEncoderForecaster):
    """Encoder-forecaster of convolutional GRU cells: a quarter fewer weights."""

    PAPER = "Shi et al. (2017), arXiv:1706.03458"
    PUBLISHED: ClassVar = {"published": Published(6_880_289)}
    cell = GRUCell


def _down(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    kernel = max(3, stride + 1)  # every pixel is seen, centred on the coarse one
    conv = Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    return nn.Sequential(conv, nn.LeakyReLU(0.2, inplace=True))


def _up(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1:
        return _down(inputs, outputs, 1)
    # A kernel of two strides overlaps evenly, so no checkerboard is built in.
    conv = nn.ConvTranspose2d(inputs, outputs, 2 * stride, stride, stride // 2)
    return nn.Sequential(conv, nn.LeakyReLU(0.2, inplace=True))


def _check(first_width: int, widths: Sequence[int], kernel: int, strides: Sequence[int]) -> None:
    if not widths or len(widths) != len(strides):
        raise OptionError(f"widths and strides name one value per stage, got {widths} and {strides}.")
    if first_width < 1 or any(width < 1 or width % GROUP for width in widths):
        raise OptionError(f"first_width must be >= 1 and widths multiples of {GROUP}, got {first_width} and {widths}.")
    if kernel < 1 or kernel % 2 == 0:
        raise OptionError(f"kernel must be odd, got {kernel}.")
    if any(stride != 1 and (stride < 1 or stride % 2) for stride in strides):
        raise OptionError(f"strides must be 1 or even, got {strides}.")
