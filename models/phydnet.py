"""PhyDNet: known physics and unknown residual, apart.

Le Guen, Thome (2020), "Disentangling Physical Dynamics from Unknown Factors for Unsupervised Video Prediction",
CVPR, arXiv:2003.01460. Sizes follow OpenSTL's network (github.com/chengtan9907/OpenSTL), which is that of
github.com/vincent-leguen/PhyDNet.

An encoder gives two fields. One is moved on by a PhyCell: a partial differential equation whose derivatives are
learned, each a filter that is held to one moment, and a correction by what is seen, as in a Kalman filter. The
other is moved on by ConvLSTMs, which learn whatever else there is. The decoder adds the two.

The official code decodes each of the two alone as well, in every step, and throws both pictures away; here nobody
does, and of the past no frame is decoded at all unless it is scored. Its version in OpenSTL trains on the square
of (loss - target): a slip that is not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.blocks import channels_last, lean
from nowcast.models.losses import mse
from nowcast.models.nowcaster import Published
from nowcast.models.recurrent import Recurrent, State
from nowcast.models.speedups.winograd import convolve

GROUPS = 16
"""Of every normalisation of encoder and decoder."""
SLOPE = 0.2


class JointConv(nn.Module):
    """Convolution of an input and a state together."""

    def __init__(self, inputs: int, state: int, outputs: int, *, kernel: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.conv = nn.Conv2d(inputs + state, outputs, kernel, padding=kernel // 2)

    def forward(self, x_BCHW: Tensor, h_BCHW: Tensor | None) -> Tensor:
        """None stands for zeros: their part of the kernel is left out."""
        if h_BCHW is not None:
            return convolve((x_BCHW, h_BCHW), self.conv.weight, self.conv.bias)
        return functional.conv2d(x_BCHW, self.conv.weight[:, : self.inputs], self.conv.bias, padding=self.conv.padding)


class PhyCell(nn.Module):
    """State h: moved on by a partial differential equation, then drawn towards what is seen.

    Args:
        width: Channels.
        kernel: Side of the filters that stand for derivatives, odd; there are as many as they have pixels.
    """

    def __init__(self, width: int, *, kernel: int) -> None:
        super().__init__()
        self.derivatives = nn.Conv2d(width, kernel**2, kernel, padding=kernel // 2)
        self.norm = nn.GroupNorm(kernel, kernel**2)
        self.combine = nn.Conv2d(kernel**2, width, 1)
        self.gain = JointConv(width, width, width, kernel=3)

    def forward(self, x_BCHW: Tensor, h_BCHW: Tensor | None) -> Tensor:
        """Map (x_BCHW, h_BCHW) to the next h_BCHW; None stands for zeros."""
        return lean(_corrected, self.predict(h_BCHW), x_BCHW, self.gain(x_BCHW, h_BCHW))

    def predict(self, h_BCHW: Tensor | None) -> Tensor:
        """One step of the equation. Of zeros only biases are left, the same at every pixel."""
        if h_BCHW is not None:
            changed: Tensor = h_BCHW + self.combine(self.norm(self.derivatives(h_BCHW)))
            return changed
        assert self.derivatives.bias is not None
        constant: Tensor = self.combine(self.norm(self.derivatives.bias[None, :, None, None]))
        return constant


def _corrected(predicted: Tensor, seen: Tensor, gain: Tensor) -> Tensor:
    return predicted + gain.sigmoid() * (seen - predicted)


class LSTMCell(nn.Module):
    """State (h, c); gates in the order input, forget, output, candidate."""

    def __init__(self, inputs: int, width: int, *, kernel: int) -> None:
        super().__init__()
        self.gates = JointConv(inputs, width, 4 * width, kernel=kernel)

    def forward(self, x_BCHW: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Map (x_BCHW, (h, c)) to the next (h, c); None stands for zeros."""
        h, c = state or (None, None)
        return lean(_remembered, self.gates(x_BCHW, h), c)


def _remembered(gates: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    i, f, o, g = gates.chunk(4, dim=1)
    fresh = i.sigmoid() * g.tanh()
    c = fresh if c is None else fresh + f.sigmoid() * c
    return o.sigmoid() * c.tanh(), c


class PhyDNet(Recurrent):
    """A PhyCell beside a stack of ConvLSTM cells, between a shared encoder and decoder.

    Frames must lie in [0, 1]: the last layer is a sigmoid.

    Args:
        base_width: Channels of the first convolution, a multiple of 32; the two fields have twice as many.
        widths: State channels of the ConvLSTM cells; the last is twice ``base_width``.
        kernel: Side of their kernels, odd.
        physics_kernel: Side of the filters that stand for derivatives, odd.
        patch: Pixels of a frame per pixel of the fields, 2 or 4.
        sampling_until: Share of the training after which no true frame of the future is fed. One third is where
            the official schedule, 0.003 less with each epoch, ends in 1000 epochs.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Le Guen, Thome (2020), arXiv:2003.01460"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "published": {"base_width": 32, "widths": (128, 128, 64), "patch": 4},
        "debug": {"widths": (16, 64), "patch": 4},
    }
    PUBLISHED: ClassVar = {"published": Published(3_091_732)}

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        base_width: int = 32,
        widths: Sequence[int] = (128, 128, 64),
        kernel: int = 3,
        physics_kernel: int = 7,
        patch: int = 4,
        sampling_until: float = 1 / 3,
    ) -> None:
        super().__init__(
            in_steps=in_steps,
            out_steps=out_steps,
            channels=channels,
            sampling="scheduled",
            sampling_until=sampling_until,
        )
        _check(base_width, widths, (kernel, physics_kernel), patch)
        self.multiple = patch
        base, width, last = base_width, 2 * base_width, patch // 2
        self.encoder = nn.Sequential(*_down(channels, base, 2), *_down(base, base, 1), *_down(base, width, last))
        self.see_physics, self.see_rest = (
            nn.Sequential(*_down(width, width, 1), *_down(width, width, 1)) for _ in range(2)
        )
        self.physics = PhyCell(width, kernel=physics_kernel)
        below = (width, *widths[:-1])
        self.rest = nn.ModuleList(LSTMCell(i, n, kernel=kernel) for i, n in zip(below, widths, strict=True))
        self.show_physics, self.show_rest = (
            nn.Sequential(*_up(width, width, 1), *_up(width, width, 1)) for _ in range(2)
        )
        self.decoder = nn.Sequential(*_up(width, base, 2), *_up(base, base, 1), _transposed(base, channels, last))

    def embed(self, frames_NCHW: Tensor) -> Tensor:
        """Return what the PhyCell reads, and below it what the ConvLSTMs read."""
        seen = self.encoder(channels_last(frames_NCHW))
        return torch.cat((self.see_physics(seen), self.see_rest(seen)), dim=1)

    def step(self, x: Tensor, state: State) -> tuple[tuple[Tensor, Tensor], State]:
        """Step with h of the PhyCell, and the states of the ConvLSTM cells."""
        h, before = state or (None, [None] * len(self.rest))
        x_physics, x = x.chunk(2, dim=1)
        h = self.physics(x_physics, h)
        after = []
        for cell, old in zip(self.rest, before, strict=True):
            x, c = cell(x, old)
            after.append((x, c))
        return (h, x), (h, after)

    def head(self, hidden: tuple[Tensor, Tensor]) -> Tensor:
        """Add both branches and decode them: the next frame, NCHW."""
        physics, rest = hidden
        output: Tensor = self.decoder(self.show_physics(physics) + self.show_rest(rest)).sigmoid()
        return output

    def fed(self, batch: int, progress: float) -> Tensor:
        """Teacher forcing: a whole batch is fed the truth, or none of it is."""
        _, share = self.sampling.shares(progress)
        truth = torch.rand(()) < share
        future = truth.expand(self.out_steps - 1)
        return torch.cat((torch.ones(self.in_steps, dtype=torch.bool), future)).expand(batch, -1)

    def error(self, made_BTCHW: Tensor, truth_BTCHW: Tensor, weight_BTCHW: Tensor | None = None) -> Tensor:
        """Sum over frames of the mean squared error, on which the weight of the moment loss is based."""
        return made_BTCHW.shape[1] * mse(made_BTCHW, truth_BTCHW, weight_BTCHW)

    def regularisation(self, states: list[State]) -> Tensor:
        """Return the moment loss of the derivative filters."""
        return moment_loss(self.physics.derivatives.weight)


def moments(filters: Tensor) -> Tensor:
    """Moments of filters: entry (a, b) is what they make of the polynomial row^a column^b / (a! b!).

    Args:
        filters: (..., k, k), k odd; the centre is the origin.

    Returns:
        (..., k, k), in the precision of the filters; some devices have no float64.
    """
    side = filters.shape[-1]
    places = [[(place - side // 2) ** order / factorial(order) for place in range(side)] for order in range(side)]
    powers = torch.tensor(places, dtype=filters.dtype, device=filters.device)
    return powers @ filters @ powers.mT


def moment_loss(filters: Tensor) -> Tensor:
    """Hold the filters (k², C, k, k) to one derivative each: filter (a, b) has moment (a, b) and no other.

    A mean of squares over moments and filters, summed over channels.
    """
    count, _, side, _ = filters.shape
    wanted = torch.eye(count, dtype=filters.dtype, device=filters.device).view(count, 1, side, side)
    return (moments(filters) - wanted).square().mean((0, 2, 3)).sum()


def _down(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1), *_after(outputs)


def _up(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return _transposed(inputs, outputs, stride), *_after(outputs)


def _transposed(inputs: int, outputs: int, stride: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 3, stride, 1, output_padding=stride - 1)


def _after(width: int) -> tuple[nn.Module, ...]:
    return nn.GroupNorm(GROUPS, width), nn.LeakyReLU(SLOPE, inplace=True)


def _check(base_width: int, widths: Sequence[int], kernels: Sequence[int], patch: int) -> None:
    if base_width < 1 or base_width % (2 * GROUPS):
        raise OptionError(f"base_width must be a multiple of {2 * GROUPS}, got {base_width}.")
    if not widths or min(widths) < 1 or widths[-1] != 2 * base_width:
        raise OptionError(f"The last of widths must be twice base_width, {2 * base_width}; got {tuple(widths)}.")
    if any(kernel < 1 or kernel % 2 == 0 for kernel in kernels) or kernels[1] < 3:
        raise OptionError(
            f"kernel and physics_kernel must be odd, physics_kernel >= 3; got {kernels[0]}, {kernels[1]}."
        )
    if patch not in (2, 4):
        raise OptionError(f"patch must be 2 or 4, got {patch}.")
