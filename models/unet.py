"""U-Net: frames are channels; features at several resolutions, fine ones handed across.

Ronneberger et al. (2015), "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI,
arXiv:1505.04597. Sizes, the bilinear upsampling and the recipe are those of the nowcasting baseline of
Trebing et al. (2021), arXiv:2007.04417. Unlike there a grid of any size is padded until it can be halved, so nothing
is padded on one side only between the resolutions; official weights are run as they were trained, ``pad_inside``.

Shape letters: B batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError, ShapeError
from nowcast.models.blocks import channels_last
from nowcast.models.nowcaster import Nowcaster, Published, check_past


class UNet(Nowcaster):
    """Past frames in as channels, future frames out as channels.

    Args:
        width: Channels at full resolution; twice as many at every coarser one.
        levels: Resolutions, at least 2.
        bilinear: Upsample without weights; the coarsest level is then half as wide. Else by transposed convolutions.
        pad_inside: Where a side cannot be halved, its last row is left out on the way down, and zeros stand for it on
            the way up, as in the official code. Otherwise the whole grid is padded with its edge.

    Raises:
        ValueError: If the width is odd or there is but one level.
    """

    PAPER = "Ronneberger et al. (2015), arXiv:1505.04597; Trebing et al. (2021), arXiv:2007.04417"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {"published": {}, "debug": {"width": 4, "levels": 3}}
    PUBLISHED: ClassVar = {"published": Published(17_272_577, in_steps=12, out_steps=1)}
    free_lengths: ClassVar[bool] = False

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        width: int = 64,
        levels: int = 5,
        bilinear: bool = True,
        pad_inside: bool = False,
    ) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels)
        if width < 2 or width % 2 or levels < 2:
            raise OptionError(f"width must be even and levels >= 2, got {width} and {levels}.")
        self.bilinear, self.coarsest = bilinear, 2 ** (levels - 1)
        self.multiple = 1 if pad_inside else self.coarsest
        widths = [width * 2**level for level in range(levels)]
        if bilinear:
            widths[-1] //= 2
        self.widths = tuple(widths)
        self.down = nn.ModuleList(self.unit(*sizes) for sizes in pairwise([in_steps * channels, *widths]))
        self.enlarge = (
            nn.ModuleList()
            if bilinear
            else nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, 2) for fine, coarse in pairwise(widths))
        )
        # From coarse to fine each unit hands on as many channels as the next one joins with its skip.
        below = [width, *widths[:-2]] if bilinear else widths[:-1]
        self.up = nn.ModuleList(
            self.unit(2 * wide, narrow, wide if bilinear else None)
            for wide, narrow in zip(widths[:-1], below, strict=True)
        )
        self.head = nn.Conv2d(width, out_steps * channels, 1)

    def conv(self, inputs: int, outputs: int) -> nn.Module:
        """Build the convolution that units are made of."""
        return nn.Conv2d(inputs, outputs, 3, padding=1)

    def unit(self, inputs: int, outputs: int, between: int | None = None) -> nn.Sequential:
        """Twice convolution, batch normalisation, ReLU."""
        parts = []
        for sizes in pairwise([inputs, between or outputs, outputs]):
            parts += [self.conv(*sizes), nn.BatchNorm2d(sizes[1]), nn.ReLU(inplace=True)]
        return nn.Sequential(*parts)

    def skip(self, level: int, x_BCHW: Tensor) -> Tensor:
        """Return what the way up sees of a level of the way down."""
        return x_BCHW

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        """Map past_BTCHW to future_BTCHW."""
        check_past(past_BTCHW, self)
        if min(past_BTCHW.shape[-2:]) < self.coarsest and self.multiple == 1:
            raise ShapeError(
                f"With pad_inside frames have sides of {self.coarsest} or more, got {tuple(past_BTCHW.shape[-2:])}."
            )
        return self.on_any_grid(self.forecast, past_BTCHW)

    def forecast(self, past_BTCHW: Tensor) -> Tensor:
        """Forecast of frames whose sides divide by ``multiple``."""
        skips = self.features(past_BTCHW)
        x = skips.pop()
        for level in reversed(range(len(self.up))):
            x = self.segment(self.rise, level, skips[level], x)
        output: Tensor = self.head(x).unflatten(1, (self.out_steps, self.channels))
        return output

    def features(self, past_BTCHW: Tensor) -> list[Tensor]:
        """Return what the way up sees of every level, finest first."""
        x, skips = channels_last(past_BTCHW.flatten(1, 2)), []
        for level, unit in enumerate(self.down):
            x = self.segment(unit, functional.max_pool2d(x, 2) if level else x)
            skips.append(self.segment(self.skip, level, x))
        return skips

    def rise(self, level: int, skip_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """One level up, where the skip comes from."""
        if self.bilinear:
            x = functional.interpolate(x_BCHW, scale_factor=2, mode="bilinear", align_corners=True)
        else:
            x = self.enlarge[level](x_BCHW)
        if x.shape[-2:] != skip_BCHW.shape[-2:]:  # pad_inside: an odd row or column is one more
            lower, right = (ours - its for ours, its in zip(skip_BCHW.shape[-2:], x.shape[-2:], strict=True))
            x = functional.pad(x, (right // 2, right - right // 2, lower // 2, lower - lower // 2))
        output: Tensor = self.up[level](torch.cat([skip_BCHW, x], dim=1))
        return output

    def error(self, made_BTCHW: Tensor, truth_BTCHW: Tensor, weight_BTCHW: Tensor | None = None) -> Tensor:
        """Squared error summed over frames and pixels, mean over the batch."""
        error = (made_BTCHW - truth_BTCHW).square()
        return (error if weight_BTCHW is None else error * weight_BTCHW).sum() / len(made_BTCHW)
