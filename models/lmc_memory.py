"""LMC-Memory: a forecast that recalls motions it has seen in longer clips.

Lee et al. (2021), "Video Prediction Recalling Long-term Motion Context via Memory Alignment Learning",
arXiv:2104.00924. Written from the paper and a description of what github.com/sangmin-git/LMC-Memory computes.

Convolutional LSTMs carry the forecast. Beside them a matrix of slots holds motions of long clips. Training has two
phases: in the first a context encoder addresses the slots with a long clip and fills them; in the second a matching
encoder has only the past frames and must find what was filled, for the slots stay as they are. Forecasts use the
second way.

Unlike the official code: any number of input frames (its pooling needs nine), channels, grid and long clip. Both
phases make one step of the optimiser together, in place of one each. The LSTMs see the same past in both phases, so
they read it once.

Shape letters: B batch, T time, C channel, H height, W width, Q queries, S slots, F features.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.blocks import channels_last, each_frame, in_portions, lean
from nowcast.models.losses import mae, mse
from nowcast.models.nowcaster import Nowcaster, Published, check_past
from nowcast.models.recurrent import through_stack
from nowcast.models.speedups.packed import Conv2d
from nowcast.models.speedups.winograd import convolve

State = list[tuple[Tensor, Tensor]]
"""Hidden and cell state of every LSTM; empty before the first step, for zeros."""

WARM_UP_STEPS = 10
"""Frames that are forecast during the warm-up."""


class LSTMCell(nn.Module):
    """Convolutional LSTM; gates in the order input, candidate, forget, output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        of_x, of_h = (Conv2d(width, 4 * width, 3) for _ in range(2))
        self.weight = nn.Parameter(torch.cat([of_x.weight, of_h.weight], dim=1).detach())
        # One would do, but both are in the paper's count, and learn.
        self.bias_x, self.bias_h = of_x.get_parameter("bias"), of_h.get_parameter("bias")

    def forward(self, x_BCHW: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """(input, state; None for zeros) -> next state."""
        bias = self.bias_x + self.bias_h
        if state is None:
            gates = functional.conv2d(x_BCHW, self.weight[:, : x_BCHW.shape[1]], padding=1)
            h, c = in_portions(_gated, (gates, None), (bias,))
        else:
            h, c = in_portions(_gated, (convolve((x_BCHW, state[0]), self.weight), state[1]), (bias,))
        return h, c


def _gated(gates: Tensor, c: Tensor | None, bias: Tensor) -> tuple[Tensor, Tensor]:
    i, g, f, o = (gates + bias[:, None, None]).chunk(4, dim=1)
    fresh = i.sigmoid() * g.tanh()
    c = fresh if c is None else fresh + f.sigmoid() * c
    return o.sigmoid() * c.tanh(), c


class FrameConv(Conv2d):
    """Three-dimensional convolution, 3 x 3 x 3, as one of every frame with the frames before and after it.

    On CPUs twice as fast as torch's own, and as exact. The channels of the frame before come first.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(3 * inputs, outputs, 3, padding=1)

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        """Convolve clip_BTCHW with a 3-D kernel; the inputs are kept for the backward pass, and nothing between."""
        return lean(self.convolved, clip_BTCHW)

    def convolved(self, clip_BTCHW: Tensor) -> Tensor:
        """Convolve clip_BTCHW frame by frame, each with its neighbours as channels."""
        batch, steps, channels, height, width = clip_BTCHW.shape
        beside = functional.pad(clip_BTCHW.movedim(2, -1), (0, 0, 0, 0, 0, 0, 1, 1))
        threes_BTHWC = torch.cat([beside[:, t : t + steps] for t in range(3)], dim=-1)
        threes_NHWC = threes_BTHWC.view(batch * steps, height, width, 3 * channels)
        output: Tensor = super().forward(threes_NHWC.permute(0, 3, 1, 2)).unflatten(0, (batch, steps))
        return output


class MotionEncoder(nn.Module):
    """What moves in a clip, as a map of queries with a sixteenth of the frames' sides."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = (channels, width // 2, width, 2 * width, 2 * width, 4 * width, 4 * width)
        self.convs = nn.ModuleList(FrameConv(inputs, outputs) for inputs, outputs in pairwise(widths))

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        """Frames -> queries BFHW; of a single frame nothing is known to move."""
        pairs = clip_BTCHW if clip_BTCHW.shape[1] > 1 else clip_BTCHW.expand(-1, 2, -1, -1, -1)
        x = lean(lambda x: _halved(self.convs[0](x)), pairs.diff(dim=1))  # cheaper to do again than to keep
        x = _paired(_halved(self.convs[1](x)))
        x = _paired(_halved(self.convs[3](self.convs[2](x).relu_())))
        return _paired(_halved(self.convs[5](self.convs[4](x).relu_()))).mean(dim=1)


def _halved(clip_BTCHW: Tensor) -> Tensor:
    """Positive parts, of four pixels the largest: found in this order, there are fewer to look at."""
    pooled = functional.max_pool2d(clip_BTCHW.flatten(0, 1), 2)
    output: Tensor = pooled.relu_().unflatten(0, clip_BTCHW.shape[:2])
    return output


def _paired(clip_BTCHW: Tensor) -> Tensor:
    """Return the larger of every two frames; one frame alone stays."""
    pairs = clip_BTCHW.shape[1] // 2
    if not pairs:
        return clip_BTCHW
    return torch.maximum(clip_BTCHW[:, : 2 * pairs : 2], clip_BTCHW[:, 1 : 2 * pairs : 2])


class Memory(nn.Module):
    """Slots of motion features, addressed with clips.

    Args:
        channels: Of a frame.
        width: Features of what is recalled; a slot has four times as many.
        slots: Their number.
    """

    def __init__(self, channels: int, width: int, slots: int) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.randn(slots, 4 * width))
        self.matching, self.context = MotionEncoder(channels, width), MotionEncoder(channels, width)
        self.context.load_state_dict(self.matching.state_dict())
        self.embedder = nn.Sequential(_up(4 * width, 2 * width), nn.ReLU(True), _up(2 * width, width), nn.ReLU(True))

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        """Return what the past frames recall, BCHW with a quarter of their sides."""
        output: Tensor = self.embedder(self.recalled(self.matching(clip_BTCHW), self.slots))
        return output

    def both(self, short_BTCHW: Tensor, long_BTCHW: Tensor) -> Tensor:
        """Return what the long clip recalls, which changes the slots, and what the short one does, which does not."""
        stored = self.recalled(self.context(long_BTCHW), self.slots)
        found = self.recalled(self.matching(short_BTCHW), self.slots.detach())
        output: Tensor = self.embedder(torch.cat([stored, found]))
        return output

    @staticmethod
    def recalled(query_BFHW: Tensor, slots_SF: Tensor) -> Tensor:
        """For every query the mean of the slots, weighted by their likeness to it."""
        query_BQF = query_BFHW.flatten(2).transpose(1, 2)
        likeness = functional.normalize(query_BQF, dim=-1) @ functional.normalize(slots_SF, dim=-1).T
        output: Tensor = (likeness.softmax(dim=-1) @ slots_SF).transpose(1, 2).unflatten(2, query_BFHW.shape[2:])
        return output


class LMCMemory(Nowcaster):
    """Convolutional LSTMs and a memory of long-term motion.

    Args:
        width: Channels of the LSTMs; a multiple of 8, from which all other widths follow.
        layers: LSTMs one upon the other.
        slots: Of the memory.
        sigmoid: Keep frames in (0, 1), as is done for KTH.
        long_steps: Frames of the long clip that training stores, from a random place of the past and future
            together; None, and at most: all of them.
        warm_up: Share of the training in which no more than ten frames are forecast.

    Raises:
        ValueError: If the options do not fit.
    """

    PAPER = "Lee et al. (2021), arXiv:2104.00924"
    LICENCE = "Official code and weights: CC BY-NC 4.0, not for commercial use."
    SIZES: ClassVar = {
        "published": {"width": 128, "layers": 4, "slots": 100},
        "debug": {"width": 16, "layers": 2, "slots": 10},
    }
    PUBLISHED: ClassVar = {"published": Published(33_911_825)}
    multiple = 16

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        width: int = 128,
        layers: int = 4,
        slots: int = 100,
        sigmoid: bool = False,
        long_steps: int | None = None,
        warm_up: float = 1 / 60,
    ) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels)
        if width < 8 or width % 8 or min(layers, slots) < 1:
            raise OptionError(f"width must be a multiple of 8, layers and slots >= 1, got {width}, {layers}, {slots}.")
        if (long_steps is not None and long_steps < 2) or not 0 <= warm_up < 1:
            raise OptionError(f"long_steps must be >= 2 and warm_up in [0, 1), got {long_steps} and {warm_up}.")
        self.sigmoid, self.long_steps, self.warm_up = sigmoid, long_steps, warm_up
        stem = width // 2
        downs = [(channels, stem, 2), (stem, stem, 1), (stem, width, 2), (width, width, 1)]
        self.encoder = nn.Sequential(*(part for sizes in downs for part in (_down(*sizes), nn.ELU(inplace=True))))
        self.cells = nn.ModuleList(LSTMCell(width) for _ in range(layers))
        self.memory = Memory(channels, width, slots)
        self.attention = nn.Sequential(nn.Linear(2 * width, width // 8), nn.ReLU(), nn.Linear(width // 8, width))
        ups = [(2 * width, width, 1), (width, stem, 2), (stem, stem, 1), (stem, channels, 2)]
        self.decoder = nn.Sequential(*[part for sizes in ups for part in (_up(*sizes), nn.ELU(inplace=True))][:-1])

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        """Map past_BTCHW to future_BTCHW."""
        check_past(past_BTCHW, self)

        def forecast(past: Tensor) -> Tensor:
            return self.told(self.watched(past), self.memory(past), self.out_steps)

        with self.cached_weights():
            return self.on_any_grid(forecast, past_BTCHW)

    def watched(self, past_BTCHW: Tensor) -> State:
        """State of the LSTMs after the past."""
        state: State = []
        for x in each_frame(self.encode, past_BTCHW.unbind(1)):
            state = self.segment(self.step, x, state)
        return state

    def encode(self, frames_NCHW: Tensor) -> Tensor:
        """Return what the LSTMs read of frames."""
        # This and the head are a fifth of the work, and to do it again costs less than to keep what lies between.
        output: Tensor = lean(self.encoder, channels_last(frames_NCHW))
        return output

    def step(self, x_BCHW: Tensor, state: State) -> State:
        """Map (encoded frame, state) to the next state."""
        return through_stack(self.cells, x_BCHW, state)

    def told(self, state: State, recalled_BCHW: Tensor, steps: int) -> Tensor:
        """Return the frames that follow from the state after the past and from what was recalled."""
        made: list[Tensor] = []
        for t in range(steps):
            if t:
                state = self.segment(self.step, self.encode(made[-1]), state)
            made.append(lean(self.head, *state[-1], recalled_BCHW))
        return torch.stack(made, dim=1)

    def head(self, h_BCHW: Tensor, c_BCHW: Tensor, recalled_BCHW: Tensor) -> Tensor:
        """Topmost state, and of what was recalled the channels that it asks for -> the next frame."""
        both = torch.cat([c_BCHW.mean((2, 3)), recalled_BCHW.mean((2, 3))], dim=1)
        asked_BC = self.attention(both).sigmoid()
        frame = self.decoder(torch.cat([h_BCHW, recalled_BCHW * asked_BC[:, :, None, None]], dim=1))
        output: Tensor = frame.sigmoid() if self.sigmoid else frame
        return output

    def training_loss(
        self, past_BTCHW: Tensor, future_BTCHW: Tensor, progress: float, mask_BTCHW: Tensor | None = None
    ) -> Tensor:
        """Errors of the forecasts of both phases, added up."""
        check_past(past_BTCHW, self)
        steps = future_BTCHW.shape[1]
        if warm := progress < self.warm_up:
            steps = min(steps, WARM_UP_STEPS)
        truth, weight = future_BTCHW[:, :steps], None if mask_BTCHW is None else mask_BTCHW[:, :steps]
        clip = torch.cat([past_BTCHW, truth], dim=1)
        total = clip.shape[1]
        long_steps = min(self.long_steps or total, total) if not warm else total
        start = torch.randint(total - long_steps + 1, (), device=clip.device)
        stored = start + torch.arange(long_steps, device=clip.device)  # a number of Python would stop a compiler

        def both_phases(clip: Tensor) -> Tensor:
            past = clip[:, : self.in_steps]
            recalled = self.memory.both(past, clip[:, stored])
            state: State = [(h.repeat(2, 1, 1, 1), c.repeat(2, 1, 1, 1)) for h, c in self.watched(past)]
            return self.told(state, recalled, steps)

        with self.cached_weights():
            made = self.on_any_grid(both_phases, clip)
        first, second = made.chunk(2)
        return self.compare(first, truth, weight) + self.compare(second, truth, weight)

    def error(self, made_BTCHW: Tensor, truth_BTCHW: Tensor, weight_BTCHW: Tensor | None = None) -> Tensor:
        """Mean absolute plus mean squared error."""
        return mae(made_BTCHW, truth_BTCHW, weight_BTCHW) + mse(made_BTCHW, truth_BTCHW, weight_BTCHW)


def _down(inputs: int, outputs: int, stride: int) -> Conv2d:
    return Conv2d(inputs, outputs, 3, stride, 1)


def _up(inputs: int, outputs: int, stride: int = 2) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 3, stride, 1, output_padding=stride - 1)
