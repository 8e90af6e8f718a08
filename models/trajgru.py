"""TrajGRU and the encoder-forecaster of the HKO-7 benchmark.

Shi et al. (2017), "Deep Learning for Precipitation Nowcasting: A Benchmark and a New Model",
arXiv:1706.03458; github.com/sxjscience/HKO-7 (MXNet).

A convolutional GRU looks at the same neighbours of every pixel. A TrajGRU looks along trajectories: from the
input and the state it makes L flow fields, reads the old state at the L places that they point back to, and
mixes what it finds with a 1x1 convolution. Mixing before reading would be the same, as both are linear, but
three times as many channels would be read: measured, it costs four times as much.

The PyTorch port (github.com/Hzzone/Precipitation-Nowcasting) scales its sampling points for corners that are
aligned and leaves the choice to torch, which since version 1.3 does not align them: every step then shrinks the
state. Option ``align_corners=False`` is for weights that were trained like that. The transposed convolutions
have a bias as in the port, the original's have none. The last layer of the flows starts small, not at zero:
nothing below it could learn in the first step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.blocks import lean
from nowcast.models.convlstm import EncoderForecaster, State
from nowcast.models.nowcaster import Published

SLOPE = 0.2
"""Of every LeakyReLU."""


class TrajGRUCell(nn.Module):
    """State (h,); gates in the order reset, update, candidate.

    Args:
        inputs: Channels of the input; 0: there is none.
        width: Channels of the state.
        links: Places that a pixel reads the old state at.
        kernel: Side of the kernel that reads the input, odd.
        flow_kernel: Side of the kernels that make the flows, odd.
        flow_width: Channels between them.
        align_corners: False: as the PyTorch port samples, see the top of this file.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        links: int,
        kernel: int = 3,
        flow_kernel: int = 5,
        flow_width: int = 32,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.read = nn.Conv2d(inputs, 3 * width, kernel, padding=kernel // 2) if inputs else None
        self.push = nn.Conv2d(inputs, flow_width, flow_kernel, padding=flow_kernel // 2) if inputs else None
        self.motion = nn.Conv2d(width, flow_width, flow_kernel, padding=flow_kernel // 2)
        self.flows = nn.Conv2d(flow_width, 2 * links, flow_kernel, padding=flow_kernel // 2)
        self.mix = nn.Conv2d(width * links, 3 * width, 1)
        nn.init.normal_(self.flows.weight, std=1e-2 / flow_kernel)

    def forward(self, x_BCHW: Tensor | None, state: State) -> State:
        """None stands for no input, which only a cell made without may be given."""
        read = self.read(x_BCHW) if self.read else None
        if not state:  # of a state of zeros only the bias is left, wherever it is read
            assert self.mix.bias is not None
            return (lean(self._update, read, self.mix.bias[:, None, None], None),)
        (h,) = state
        motion = self.motion(h)
        if self.push:
            motion = motion + self.push(x_BCHW)
        flows = self.flows(functional.leaky_relu(motion, SLOPE))
        return (lean(self._update, read, lean(self._look_back, h, flows), h),)

    def _look_back(self, h_BCHW: Tensor, flows: Tensor) -> Tensor:
        """Return what the gates make of the states at the other ends of all links."""
        found = warped(h_BCHW, flows, align_corners=self.align_corners)
        # The 1x1 convolution as a product of matrices: what is found lies channels first, what leaves channels last.
        weight = self.mix.weight.flatten(1).mT.expand(len(found), -1, -1)
        assert self.mix.bias is not None
        mixed = torch.baddbmm(self.mix.bias, found.flatten(1, 2).flatten(2).mT, weight)
        output: Tensor = mixed.mT.unflatten(2, h_BCHW.shape[2:])
        return output

    def _update(self, read: Tensor | None, linked: Tensor, h: Tensor | None) -> Tensor:
        r, u, n = linked.chunk(3, dim=-3)
        if read is None:
            n = r.sigmoid() * n
        else:
            x_r, x_u, x_n = read.chunk(3, dim=1)
            u = x_u + u
            n = x_n + (x_r + r).sigmoid() * n
        n, u = functional.leaky_relu(n, SLOPE), u.sigmoid()
        return (1 - u) * n if h is None else n + u * (h - n)


class TrajGRU(EncoderForecaster):
    """Encoder-forecaster of trajectory GRU cells.

    Args:
        first_width: Channels of the first and of the last convolution.
        widths: State channels per stage, finest first.
        strides: Downscaling before each stage.
        links: Links of the cells per stage, finest first.
        forecaster_links: Of the forecaster's cells where they have others.
        encoder_inputs: Channels that the encoder's cells read, finest first, but for the first, which reads
            ``first_width``; None: as many as their states have.
        forecaster_inputs: Channels that the forecaster's cells read, finest first, but for the coarsest, which reads
            nothing; None: as many as their states have, as in the port. In the original: as the stage below has.
        kernel: Side of the kernels that read a cell's input, odd.
        flow_kernel: Side of the kernels that make the flows, odd.
        align_corners: False: as the PyTorch port samples, see the top of this file.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Shi et al. (2017), arXiv:1706.03458"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "hko7": {"first_width": 8, "widths": (64, 192, 192), "strides": (5, 3, 2), "links": (13, 13, 9)},
        "hko7-port": {
            "first_width": 8,
            "widths": (64, 192, 192),
            "strides": (5, 3, 2),
            "links": (13, 13, 9),
            "forecaster_links": (9, 13, 13),
        },
        "moving-mnist": {"first_width": 16, "widths": (64, 96, 96), "strides": (1, 2, 2), "links": (13, 13, 13)},
        "debug": {"first_width": 4, "widths": (8, 8), "strides": (2, 2), "links": (3, 2), "flow_kernel": 3},
    }
    # Unused: what the port's topmost cell would read an input with, if it had one.
    PUBLISHED: ClassVar = {
        "hko7-port": Published(12_753_909, unused=1_149_536, in_steps=5, out_steps=20),
        "moving-mnist": Published(4_196_045, unused=325_952),
    }

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        first_width: int = 8,
        widths: Sequence[int] = (64, 192, 192),
        strides: Sequence[int] = (5, 3, 2),
        links: Sequence[int] = (13, 13, 9),
        forecaster_links: Sequence[int] | None = None,
        encoder_inputs: Sequence[int] | None = None,
        forecaster_inputs: Sequence[int] | None = None,
        kernel: int = 3,
        flow_kernel: int = 5,
        align_corners: bool = True,
    ) -> None:
        _check(widths, strides, (links, forecaster_links or links), (kernel, flow_kernel))
        cell = partial(TrajGRUCell, kernel=kernel, flow_kernel=flow_kernel, align_corners=align_corners)
        read, shown = encoder_inputs or widths[1:], forecaster_inputs or widths[:-1]
        _check_inputs(read, shown, stages=len(widths))
        below, above = (first_width, *read), (*shown, 0)
        back = forecaster_links or links
        up = [_up(*sizes) for sizes in zip(widths, (first_width, *shown), strides, strict=True)]
        up[0].extend(
            (
                nn.Conv2d(first_width, first_width, 3, padding=1),
                nn.LeakyReLU(SLOPE, inplace=True),
                nn.Conv2d(first_width, channels, 1),
            )
        )
        super().__init__(
            in_steps=in_steps,
            out_steps=out_steps,
            channels=channels,
            multiple=math.prod(strides),
            up=up,
            down=[_down(*sizes) for sizes in zip((channels, *widths[:-1]), below, strides, strict=True)],
            encoder=[cell(x, h, links=n) for x, h, n in zip(below, widths, links, strict=True)],
            forecaster=[cell(x, h, links=n) for x, h, n in zip(above, widths, back, strict=True)],
        )


def warped(h_BCHW: Tensor, flows: Tensor, *, align_corners: bool = True) -> Tensor:
    """Read a field at the places that lie upstream of every pixel; bilinear, zero outside.

    Args:
        h_BCHW: The field.
        flows: (B, 2 L, H, W): dx and dy of the first link, of the second, ..., in pixels.
        align_corners: False: points are scaled as if corners were aligned, but read as if they were not.

    Returns:
        (B, C, L, H, W).
    """
    height, width = flows.shape[-2:]
    dx, dy = flows.unflatten(1, (-1, 2)).unbind(2)
    x = torch.arange(width, device=flows.device, dtype=torch.float32) - dx
    y = torch.arange(height, device=flows.device, dtype=torch.float32)[:, None] - dy
    if not align_corners:
        x, y = x * (width / max(width - 1, 1)) - 0.5, y * (height / max(height - 1, 1)) - 0.5
    # The links lie below each other in one large picture of sampling points: the field is not copied L times.
    points = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1).flatten(1, 2)
    found = functional.grid_sample(h_BCHW.to(points.dtype), points, align_corners=False)
    output: Tensor = found.unflatten(2, (-1, height)).to(h_BCHW.dtype)
    return output


def _down(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    kernel = stride + 2 if stride % 2 else stride + 1
    conv = nn.Conv2d(inputs, outputs, kernel, stride, 1)
    return nn.Sequential(_he(conv), nn.LeakyReLU(SLOPE, inplace=True))


def _up(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    conv = nn.ConvTranspose2d(inputs, outputs, stride + 2, stride, 1)
    return nn.Sequential(_he(conv), nn.LeakyReLU(SLOPE, inplace=True))


def _he(conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    nn.init.kaiming_normal_(conv.weight, SLOPE)
    return conv


def _check(
    widths: Sequence[int], strides: Sequence[int], links: Sequence[Sequence[int]], kernels: Sequence[int]
) -> None:
    if not widths or any(len(values) != len(widths) for values in (strides, *links)):
        raise OptionError(f"widths, strides and links name one value per stage, got {widths}, {strides} and {links}.")
    if min(*widths, *strides, *links[0], *links[1]) < 1:
        raise OptionError(f"widths, strides and links must be >= 1, got {widths}, {strides} and {links}.")
    if any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
        raise OptionError(f"kernel and flow_kernel must be odd, got {kernels[0]} and {kernels[1]}.")


def _check_inputs(read: Sequence[int], shown: Sequence[int], *, stages: int) -> None:
    if {len(read), len(shown)} != {stages - 1} or min(*read, *shown, 1) < 1:
        raise OptionError(
            "encoder_inputs and forecaster_inputs name the channels of all stages but one, "
            f"got {tuple(read)} and {tuple(shown)} for {stages} stages."
        )
