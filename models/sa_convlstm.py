"""SA-ConvLSTM: convolutional LSTM with a memory that attends to itself.

Lin, Li, Zheng, Cheng, Yuan (2020), "Self-Attention ConvLSTM for Spatiotemporal Prediction", AAAI 34,
doi:10.1609/aaai.v34i07.6819. The authors published no code; two readings of the paper by others are here:

- ``SAConvLSTM`` makes the next frame from each, as github.com/jerrywn121/TianChi_AIEarth does. The size
  ``published`` is the paper's (patches of 4, scores not scaled), ``tianchi`` that of the repository.
- ``SASequence`` makes as many frames as it reads, as github.com/tsugumi-sys/SA-ConvLSTM-Pytorch does. That code
  creates its peepholes so that on a GPU they are neither trained nor saved; ours are. Without ``grid`` norms and
  peepholes have one value per channel.

``context`` and ``expression`` put the two blocks of CMS-LSTM into the former: its paper reports that they help,
without code. Context embedding comes before the gates, and expression takes the place of the attention memory.

Shape letters: B batch, T time, C channel, H height, W width, N positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.blocks import FieldNorm, channels_last, lean
from nowcast.models.cms_lstm import BLOCKS, ContextEmbedding, SpatiotemporalExpression
from nowcast.models.direct import Direct
from nowcast.models.losses import weighted_mean
from nowcast.models.nowcaster import Published, check_past
from nowcast.models.predrnn import check_stack
from nowcast.models.recurrent import Patched, Sampling, through_stack

State = tuple[Tensor, Tensor, Tensor]
"""h, c and the memory of a layer."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky-relu": functional.leaky_relu,
    "sigmoid": torch.sigmoid,
}
"""Of the candidate and of what is shown of the cell state."""


class AttentionMemory(nn.Module):
    """Attends from the hidden state to itself and to the memory, and updates both with what is found.

    Args:
        width: Channels of the hidden state and of the memory.
        keys: Channels of queries and keys.
        values: Channels of what is found.
        mixed: Channels of both findings together.
        kernel: Side of the gates' kernels, odd.
        scaled: Divide scores by the root of ``keys``.
        projected: Both findings pass through a layer of their own first.
    """

    def __init__(
        self, width: int, *, keys: int, values: int, mixed: int, kernel: int, scaled: bool, projected: bool = False
    ) -> None:
        super().__init__()
        self.keys, self.values, self.scale = keys, values, keys**-0.5 if scaled else 1.0
        self.from_h = nn.Conv2d(width, 2 * keys + values, 1)
        self.from_memory = nn.Conv2d(width, keys + values, 1)
        self.found_h = nn.Conv2d(values, values, 1) if projected else nn.Identity()
        self.found_memory = nn.Conv2d(values, values, 1) if projected else nn.Identity()
        self.mix = nn.Conv2d(2 * values, mixed, 1)
        self.gates = nn.Conv2d(mixed + width, 3 * width, kernel, padding=kernel // 2)

    def forward(self, h_BCHW: Tensor, memory_BCHW: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the new hidden state and memory; None stands for zeros."""
        query, key, value = self.from_h(h_BCHW).split((self.keys, self.keys, self.values), dim=1)
        found_h = self.found_h(self.attend(query, key, value))
        if memory_BCHW is None:
            # All positions of a memory of zeros are alike: the value of any is found.
            alike = self.from_memory.bias[self.keys :, None, None]  # type: ignore[index]
            found = alike.expand_as(value)
        else:
            found = self.attend(query, *self.from_memory(memory_BCHW).split((self.keys, self.values), dim=1))
        mixed = self.mix(torch.cat([found_h, self.found_memory(found)], dim=1))
        return lean(_remember, self.gates(torch.cat([mixed, h_BCHW], dim=1)), memory_BCHW)

    def attend(self, query_BCHW: Tensor, key_BCHW: Tensor, value_BCHW: Tensor) -> Tensor:
        """Attention of all positions to all; no matrix of scores is kept."""
        query, key, value = (part.flatten(2).mT.unsqueeze(1) for part in (query_BCHW, key_BCHW, value_BCHW))
        if self.keys < self.values:  # zeros change no score, and fast attention wants all of one width
            query, key = (functional.pad(part, (0, self.values - self.keys)) for part in (query, key))
        found_BNC = functional.scaled_dot_product_attention(query, key, value, scale=self.scale).squeeze(1)
        output: Tensor = found_BNC.mT[:, : self.values].unflatten(2, value_BCHW.shape[2:])
        return output


class SACell(nn.Module):
    """Convolutional LSTM, gates i f g o, whose hidden state goes through a memory.

    Args:
        inputs: Channels that come from below.
        width: Channels of h, c and the memory.
        kernel: Side of the kernels, odd.
        memory: (h, memory or None) -> both anew.
        context: What input and hidden state do to each other before; None: nothing.
        peepholes: Height and width of weights by which the gates see the cell state, (1, 1) for one per channel;
            None: they do not see it.
        activation: One of ``ACTIVATIONS``.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        kernel: int,
        memory: nn.Module,
        context: nn.Module | None = None,
        peepholes: tuple[int, int] | None = None,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.inputs, self.activation = inputs, ACTIVATIONS[activation]
        self.context, self.memory = context, memory
        self.gates = nn.Conv2d(inputs + width, 4 * width, kernel, padding=kernel // 2)
        self.peepholes = nn.Parameter(torch.zeros(3, width, *peepholes)) if peepholes else None

    def forward(self, x_BCHW: Tensor, state: State | None) -> State:
        """None stands for a state of zeros."""
        x, (h, c, memory) = x_BCHW, state or (None, None, None)
        if self.context is not None:
            x, h = self.context(x, h)
        if h is None:
            gates = functional.conv2d(
                x, self.gates.weight[:, : self.inputs], self.gates.bias, padding=self.gates.padding
            )
        else:
            gates = self.gates(torch.cat([x, h], dim=1))
        h, c = lean(self._update, gates, c)
        h, memory = self.memory(h, memory)
        return h, c, memory

    def _update(self, gates: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        i, f, g, o = gates.chunk(4, dim=1)
        if self.peepholes is not None and c is not None:
            i, f = i + self.peepholes[0] * c, f + self.peepholes[1] * c
        fresh = i.sigmoid() * self.activation(g)
        c = fresh if c is None else fresh + f.sigmoid() * c
        if self.peepholes is not None:
            o = o + self.peepholes[2] * c
        return o.sigmoid() * self.activation(c), c


class Expression(SpatiotemporalExpression):
    """Expression block in the place of an attention memory."""

    def forward(self, h_BCHW: Tensor, memory_BCHW: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map (h_BCHW, memory_BCHW) to both after the step; None stands for zeros."""
        return super().forward(h_BCHW, torch.zeros_like(h_BCHW) if memory_BCHW is None else memory_BCHW)


class SAConvLSTM(Patched):
    """Layers of cells with attention memory on folded frames.

    Args:
        widths: State channels per layer.
        kernel: Side of the convolutions, odd.
        patch: Side of the patches that frames are folded into.
        attention: Channels of queries, keys, values and what is found.
        scaled: Divide scores by the root of ``attention``; the paper does not.
        context: Context embedding of CMS-LSTM before the gates.
        expression: Expression block of CMS-LSTM instead of the attention memory.
        sampling: See ``Recurrent``.
        sampling_until: See ``Recurrent``.
        reverse_input: See ``Recurrent``.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Lin et al. (2020), doi:10.1609/aaai.v34i07.6819"
    LICENCE = "The authors published no code; the repository of the size tianchi has no licence file."
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "published": {"widths": (64,) * 4, "patch": 4},
        "tianchi": {"widths": (64,) * 4, "patch": 1, "scaled": True},
        "debug": {"widths": (8, 8), "attention": 4, "patch": 2},
    }
    PUBLISHED: ClassVar[dict[str, Published]] = {"tianchi": Published(1_749_825)}

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        widths: Sequence[int] = (64,) * 4,
        kernel: int = 3,
        patch: int = 4,
        attention: int = 32,
        scaled: bool = False,
        context: bool = False,
        expression: bool = False,
        sampling: Sampling = "scheduled",
        sampling_until: float = 0.625,
        reverse_input: bool = False,
    ) -> None:
        check_stack(widths, kernel)
        if attention < 1:
            raise OptionError(f"attention must be >= 1, got {attention}.")
        super().__init__(
            in_steps=in_steps,
            out_steps=out_steps,
            channels=channels,
            sampling=sampling,
            sampling_until=sampling_until,
            reverse_input=reverse_input,
            hidden=widths[-1],
            patch=patch,
            bias=True,
            blocks=BLOCKS if expression else 1,
        )

        def memory(width: int) -> nn.Module:
            if expression:
                return Expression(width)
            return AttentionMemory(
                width, keys=attention, values=attention, mixed=attention, kernel=kernel, scaled=scaled
            )

        self.cells = nn.ModuleList(
            SACell(
                inputs,
                width,
                kernel=kernel,
                memory=memory(width),
                context=ContextEmbedding(inputs, width, kernel=kernel) if context else None,
            )
            for inputs, width in zip((self.folded, *widths[:-1]), widths, strict=True)
        )

    def embed(self, frames_NCHW: Tensor) -> Tensor:
        """Fold frames_NCHW: pixels of a patch become channels."""
        return channels_last(super().embed(frames_NCHW))

    def step(self, x: Tensor, state: list[State] | None) -> tuple[Tensor, list[State]]:
        """Map (embedded frame, state of all layers) to (hidden state of the top, next state)."""
        after = through_stack(self.cells, x, state)
        return after[-1][0], after


class TimeConv(nn.Module):
    """3-D convolution with kernels of three in time and space, for few channels out.

    Every frame is convolved once for each of the three it counts in, and those are added up.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.taps = nn.Conv2d(inputs, 3 * outputs, 3, padding=1, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, fields_BCTHW: Tensor) -> Tensor:
        """Frames that come out: BTCHW."""
        batch, _, steps = fields_BCTHW.shape[:3]
        taps = self.taps(fields_BCTHW.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, steps))
        before, here, after = functional.pad(taps, (0, 0) * 3 + (1, 1)).chunk(3, dim=2)
        return before[:, :-2] + here[:, 1:-1] + after[:, 2:] + self.bias[:, None, None]


class SASequence(Direct):
    """Layers that run over all frames, each followed by a norm over space and time, and a 3-D convolution.

    Args:
        layers: Cells.
        width: State channels of each.
        kernel: Side of the convolutions, odd.
        attention: Channels of queries and keys.
        activation: Of the cells: tanh, relu, leaky-relu or sigmoid.
        single: Only the frame after the past is made at once, not as many as it has.
        grid: Height and width of the frames that norms and peepholes are bound to, as in published weights;
            None: any.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Lin et al. (2020), doi:10.1609/aaai.v34i07.6819"
    LICENCE = "The authors published no code; the repository that this follows has no licence file."
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "tsugumi": {"layers": 2, "width": 64, "attention": 2, "activation": "relu", "grid": (64, 64)},
        "debug": {"layers": 1, "width": 16, "attention": 4},
    }
    PUBLISHED: ClassVar[dict[str, Published]] = {}

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        layers: int = 2,
        width: int = 64,
        kernel: int = 3,
        attention: int = 8,
        activation: str = "tanh",
        single: bool = False,
        grid: Sequence[int] | None = None,
    ) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels)
        if min(layers, attention) < 1:
            raise OptionError(f"layers and attention must be >= 1, got {layers} and {attention}.")
        check_stack((width,), kernel)
        if activation not in ACTIVATIONS:
            raise OptionError(f"Unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}.")
        self.single, self.grid = single, None if grid is None else (grid[0], grid[1])

        def memory() -> nn.Module:
            return AttentionMemory(
                width, keys=attention, values=width, mixed=2 * width, kernel=1, scaled=False, projected=True
            )

        self.cells = nn.ModuleList(
            SACell(inputs, width, kernel=kernel, memory=memory(), peepholes=self.grid or (1, 1), activation=activation)
            for inputs in (channels, *[width] * (layers - 1))
        )
        bound = (in_steps, *self.grid) if self.grid else None
        self.norms = nn.ModuleList(FieldNorm(width, bound) for _ in range(layers))
        self.output = TimeConv(width, channels)

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        """Map past_BTCHW to future_BTCHW."""
        check_past(past_BTCHW, self)
        return self.on_any_grid(lambda past: self.roll_out(past).sigmoid(), past_BTCHW)

    def roll_out(self, past_BTCHW: Tensor) -> Tensor:
        """Forecast before the sigmoid."""
        window, made = past_BTCHW, [self.block(past_BTCHW)]
        while sum(frames.shape[1] for frames in made) < self.out_steps:
            window = torch.cat([window, made[-1].sigmoid()], dim=1)[:, -self.in_steps :]
            made.append(self.block(window))
        return torch.cat(made, dim=1)[:, : self.out_steps]

    def block(self, past_BTCHW: Tensor) -> Tensor:
        """Return the next frames before the sigmoid: one, or as many as those of the past."""
        fields_BCTHW = past_BTCHW.transpose(1, 2)
        for cell, norm in zip(self.cells, self.norms, strict=True):
            fields_BCTHW = norm(self.segment(_unrolled, cell, fields_BCTHW))
        if self.single:  # the last frame is made of the last two
            last: Tensor = self.output(fields_BCTHW[:, :, -2:])[:, -1:]
            return last
        frames: Tensor = self.output(fields_BCTHW)
        return frames

    def training_loss(
        self, past_BTCHW: Tensor, future_BTCHW: Tensor, progress: float, mask_BTCHW: Tensor | None = None
    ) -> Tensor:
        """Return the paper's cross entropy of the logits, or the chosen loss of the frames."""
        if self.loss is not None:
            return self.compare(self(past_BTCHW), future_BTCHW, mask_BTCHW)
        check_past(past_BTCHW, self)
        return _cross_entropy(self.on_any_grid(self.roll_out, past_BTCHW), future_BTCHW, mask_BTCHW)

    def error(self, made_BTCHW: Tensor, truth_BTCHW: Tensor, weight_BTCHW: Tensor | None = None) -> Tensor:
        """Binary cross entropy, the mean instead of the sum."""
        return _cross_entropy(made_BTCHW.float().logit(eps=1e-6), truth_BTCHW, weight_BTCHW)


def _cross_entropy(logits: Tensor, truth: Tensor, weight: Tensor | None) -> Tensor:
    return weighted_mean(functional.binary_cross_entropy_with_logits(logits, truth, reduction="none"), weight)


def _unrolled(cell: SACell, fields_BCTHW: Tensor) -> Tensor:
    """Hidden states of a cell after every frame."""
    state, hidden = None, []
    for x in fields_BCTHW.unbind(2):
        state = cell(channels_last(x), state)
        hidden.append(state[0])
    return torch.stack(hidden, dim=2)


def _remember(gates: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
    i, g, o = gates.chunk(3, dim=1)
    fresh = i.sigmoid() * g.tanh()
    memory = fresh if memory is None else fresh + (1 - i.sigmoid()) * memory
    return o.sigmoid() * memory, memory
