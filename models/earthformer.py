"""Earthformer: transformer whose attention looks along one axis at a time.

Gao, Shi, Wang, Zhu, Wang, Li, Yeung (2022), "Earthformer: Exploring Space-Time Transformers for Earth System
Forecasting", NeurIPS 35, arXiv:2207.05833. Sizes follow github.com/amazon-science/earth-forecasting-transformer.

Space and time are cut into cuboids, and attention stays within one. The best pattern of the paper, the only one
here, is axial: cuboids are lines along time, then along rows, then along columns. Global vectors, which see
everything and are seen everywhere, tie the lines together. The encoder halves the grid from level to level; the
decoder starts from positions alone, asks the encoder level by level what was there at the same pixel, and makes all
frames at once.

Unlike the official code the grid is free. Absolute positions are learned for one grid (option ``grid``), and
interpolated on others; relative ones keep their meaning in pixels, and what lies farther than ever seen counts as
the farthest. What the last layer of the encoder makes of the global vectors is read by nobody, and not computed.

Shape letters: B batch, T time, H height, W width, C channel, N lines, L length of a line, G global vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.core.errors import OptionError
from nowcast.models.blocks import channels_last, on_multiple
from nowcast.models.nowcaster import Nowcaster, Published, check_past

AXES = (1, 2, 3)
"""Time, height, width of BTHWC, in the order of attention."""
SLOPE = 0.1
"""Of every LeakyReLU."""


class RelativeBias(nn.Module):
    """Learned part of the attention that depends on how far apart two pixels of a line are.

    Args:
        length: Distances are told apart up to one less than this.
        heads: Of the attention.
    """

    def __init__(self, length: int, heads: int) -> None:
        super().__init__()
        self.reach = length - 1
        self.table = nn.Parameter(torch.empty(2 * length - 1, heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, queries: int, keys: int) -> Tensor:
        """Return the bias of each pair, (heads, queries, keys)."""
        places = torch.arange(max(queries, keys), device=self.table.device)
        apart = (places[:queries, None] - places[:keys]).clamp(-self.reach, self.reach)
        return self.table[apart + self.reach].permute(2, 0, 1)


class AxialAttention(nn.Module):
    """Attention of every pixel to those on the same line, and to the global vectors where there are some.

    Args:
        width: Channels.
        axis: Of BTHWC, that lines run along.
        length: Of lines, that distances are told apart for.
        heads: A divisor of ``width``.
        dropout: Share of attention and of results left out in training.
        reads_global: Pixels see global vectors.
        updates_global: Global vectors see pixels and each other.
    """

    def __init__(
        self,
        width: int,
        *,
        axis: int,
        length: int,
        heads: int,
        dropout: float,
        reads_global: bool = False,
        updates_global: bool = False,
    ) -> None:
        super().__init__()
        self.axis, self.heads, self.dropout, self.updates_global = axis, heads, dropout, updates_global
        self.norm, self.bias = nn.LayerNorm(width), RelativeBias(length, heads)
        # Query, key, value among pixels; query for global vectors; key, value for them to see.
        self.of_pixels = _linear(width, (3 + reads_global + 2 * updates_global) * width, bias=False)
        self.project = _linear(width, width)
        if reads_global:
            self.norm_global = nn.LayerNorm(width)
            # Key, value for pixels to see; query for pixels; query, key, value among global vectors.
            self.of_global = _linear(width, (2 + 4 * updates_global) * width, bias=False)
        if updates_global:
            self.project_global = _linear(width, width)

    def forward(self, x_BTHWC: Tensor, global_BGC: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map pixels_BTHWC and global vectors_BGC to the same shapes."""
        lines = self.norm(x_BTHWC).movedim(self.axis, 3)
        pixels = _heads(self.of_pixels(lines.flatten(0, 2)), self.heads, x_BTHWC.shape[-1])
        bias, drop = self.bias(lines.shape[3], lines.shape[3]), self.dropout * self.training
        if global_BGC is None:
            seen = functional.scaled_dot_product_attention(
                pixels[0], pixels[1], pixels[2], attn_mask=bias[None], dropout_p=drop
            )
        else:
            vectors = _heads(self.of_global(self.norm_global(global_BGC)), self.heads, x_BTHWC.shape[-1])
            key, value = (part.repeat_interleave(len(pixels[0]) // len(part), dim=0) for part in vectors[:2])
            seen = _attend_to_both(pixels[:3], (pixels[3], key, value), bias, drop)
            global_BGC = self._global(global_BGC, pixels[4:], vectors[2:], drop)
        seen = self._left_out(self.project(_together(seen)))
        return x_BTHWC + seen.view(lines.shape).movedim(3, self.axis), global_BGC

    def _global(self, vectors: Tensor, pixels: Sequence[Tensor], own: Sequence[Tensor], drop: float) -> Tensor:
        """Global vectors after they saw all pixels and each other."""
        if not self.updates_global:
            return vectors
        # (N, heads, L, c) -> (B, heads, all pixels, c)
        key, value = (part.unflatten(0, (len(vectors), -1)).transpose(1, 2).flatten(2, 3) for part in pixels)
        seen = _attend_to_both((own[0], key, value), (own[1], own[2], own[3]), None, drop)
        return vectors + self._left_out(self.project_global(_together(seen)))

    def _left_out(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


class CrossAttention(nn.Module):
    """Attention of every pixel to the same pixel at all times of the past."""

    def __init__(self, width: int, *, length: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm, self.bias = nn.LayerNorm(width), RelativeBias(length, heads)
        self.query, self.seen = _linear(width, width, bias=False), _linear(width, 2 * width, bias=False)
        self.project = _linear(width, width)

    def forward(self, x_BTHWC: Tensor, past_BTHWC: Tensor) -> Tensor:
        """Map x_BTHWC, which asks past_BTHWC, to the same shape."""
        lines = self.norm(x_BTHWC).movedim(1, 3)
        (query,) = _heads(self.query(lines.flatten(0, 2)), self.heads, lines.shape[-1])
        key, value = _heads(self.seen(past_BTHWC.movedim(1, 3).flatten(0, 2)), self.heads, lines.shape[-1])
        bias = self.bias(query.shape[2], key.shape[2])[None]
        drop = self.dropout * self.training
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=drop)
        made = functional.dropout(self.project(_together(seen)), self.dropout, self.training)
        return x_BTHWC + made.view(lines.shape).movedim(3, 1)


class FeedForward(nn.Module):
    """Two layers at every pixel, four times as wide between them, added to what came in."""

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            _linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            _linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x to the same shape: channels are the last axis."""
        output: Tensor = x + self.layers(x)
        return output


class AxialBlock(nn.Module):
    """Attention along time, rows and columns, each followed by a feed-forward layer.

    Args:
        width: Channels.
        lengths: Frames, rows and columns that distances are told apart for.
        reads_global: There are global vectors.
        last: Nobody reads the global vectors afterwards.
        heads: See ``AxialAttention``.
        dropout: See ``AxialAttention``.
    """

    def __init__(
        self,
        width: int,
        lengths: Sequence[int],
        *,
        reads_global: bool = False,
        last: bool = False,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention = nn.ModuleList(
            AxialAttention(
                width,
                axis=axis,
                length=length,
                heads=heads,
                dropout=dropout,
                reads_global=reads_global,
                updates_global=reads_global and not (last and axis == AXES[-1]),
            )
            for axis, length in zip(AXES, lengths, strict=True)
        )
        self.feed = nn.ModuleList(FeedForward(width, dropout=dropout) for _ in AXES)

    def forward(self, x_BTHWC: Tensor, global_BGC: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Map pixels_BTHWC and global vectors_BGC to the same shapes."""
        for attention, feed in zip(self.attention, self.feed, strict=True):
            x_BTHWC, global_BGC = attention(x_BTHWC, global_BGC)
            x_BTHWC = feed(x_BTHWC)
        return x_BTHWC, global_BGC


class CrossBlock(nn.Module):
    """Attention to the past, followed by a feed-forward layer."""

    def __init__(self, width: int, *, length: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = CrossAttention(width, length=length, heads=heads, dropout=dropout)
        self.feed = FeedForward(width, dropout=dropout)

    def forward(self, x_BTHWC: Tensor, past_BTHWC: Tensor) -> Tensor:
        """Map x_BTHWC, which asks past_BTHWC, to the same shape."""
        output: Tensor = self.feed(self.attention(x_BTHWC, past_BTHWC))
        return output


class PatchMerge(nn.Module):
    """Patches of ``scale`` x ``scale`` pixels become one, (..., H, W, C)."""

    def __init__(self, inputs: int, outputs: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.norm, self.reduce = nn.LayerNorm(scale**2 * inputs), _linear(scale**2 * inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., H, W, C) to (..., H / scale, W / scale, widened C)."""
        patches = x.unflatten(-2, (-1, self.scale)).unflatten(-4, (-1, self.scale)).transpose(-4, -3)
        output: Tensor = self.reduce(self.norm(patches.flatten(-3)))
        return output


class GroupNorm(nn.GroupNorm):
    """Groups of four channels, in full precision, which only GPUs see to by themselves."""

    def __init__(self, width: int) -> None:
        super().__init__(max(1, width // 4), width)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x in the precision of the weights; the shape stays."""
        return super().forward(x.to(self.weight.dtype))


class Shrink(nn.Module):
    """Two convolutions, then patches become pixels."""

    def __init__(self, inputs: int, outputs: int, scale: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*_conv(inputs, outputs), *_conv(outputs, outputs))
        self.merge = PatchMerge(outputs, outputs, scale)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map x_NCHW to NCHW."""
        output: Tensor = self.merge(self.convs(x_NCHW).movedim(1, -1)).movedim(-1, 1)
        return output


class Positions(nn.Module):
    """Learned for every frame and every pixel: the sum of what is known of each.

    Args:
        width: Channels.
        frames: How many.
        grid: Height and width that they are learned for; on others they are interpolated.
        apart: Rows and columns have one each, instead of every pixel.
    """

    def __init__(self, width: int, frames: int, grid: tuple[int, int], *, apart: bool) -> None:
        super().__init__()
        self.time = nn.Parameter(torch.empty(frames, width))
        shapes = ((grid[0], 1), (1, grid[1])) if apart else (grid,)
        self.space = nn.ParameterList(torch.empty(width, *shape) for shape in shapes)
        for table in self.parameters():
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, height: int, width: int) -> Tensor:
        """Return the position embedding, (T, H, W, C)."""
        space = sum(self._stretched(field, height, width) for field in self.space)
        return self.time[:, None, None] + space

    @staticmethod
    def _stretched(field_CHW: Tensor, height: int, width: int) -> Tensor:
        size = (height if field_CHW.shape[1] > 1 else 1, width if field_CHW.shape[2] > 1 else 1)
        if field_CHW.shape[1:] != size:
            field_CHW = functional.interpolate(field_CHW[None], size, mode="bilinear", align_corners=True)[0]
        return field_CHW.movedim(0, -1)


class Earthformer(Nowcaster):
    """Hierarchical encoder and decoder of axial attention.

    Args:
        stem_widths: Channels of the convolutions before the encoder, finest first; the last is that of its first
            level, and every level has twice as many as the one before.
        stem_scales: Downscaling after each of them.
        crown_convs: Convolutions after each upscaling behind the decoder.
        depth: Blocks per level, of the encoder and of the decoder, finest first.
        heads: Of the attention.
        global_vectors: How many; 0: none.
        apart: Rows and columns have positions of their own, instead of every pixel.
        grid: Height and width of the frames that positions are learned for; on others they are interpolated.
        dropout: Share of attention and of activations left out in training.

    Raises:
        ValueError: If the options do not fit each other.
    """

    PAPER = "Gao et al. (2022), arXiv:2207.05833"
    SIZES: ClassVar[dict[str, dict[str, object]]] = {
        "moving-mnist": {
            "stem_widths": (64,),
            "stem_scales": (2,),
            "depth": (4, 4),
            "crown_convs": 1,
            "apart": False,
            "grid": (64, 64),
        },
        "sevir": {
            "stem_widths": (16, 64, 128),
            "stem_scales": (3, 2, 2),
            "depth": (1, 1),
            "global_vectors": 8,
            "grid": (384, 384),
        },
        "sevir-lr": {"stem_widths": (4, 16, 64), "stem_scales": (1, 2, 2), "depth": (1, 1), "grid": (128, 128)},
        "debug": {
            "stem_widths": (16,),
            "stem_scales": (2,),
            "crown_convs": 1,
            "depth": (1, 1),
            "heads": 2,
            "global_vectors": 2,
            "grid": (16, 16),
            "dropout": 0.0,
        },
    }
    # Unused: what the encoder's last layer makes of the global vectors.
    PUBLISHED: ClassVar = {
        "moving-mnist": Published(6_702_109),
        "sevir": Published(8_659_677, unused=459_008, in_steps=13, out_steps=12),
        "sevir-lr": Published(1_505_069, in_steps=7, out_steps=6),
    }
    free_lengths = False

    def __init__(
        self,
        *,
        in_steps: int,
        out_steps: int,
        channels: int = 1,
        stem_widths: Sequence[int] = (16, 64, 128),
        stem_scales: Sequence[int] = (3, 2, 2),
        crown_convs: int = 2,
        depth: Sequence[int] = (1, 1),
        heads: int = 4,
        global_vectors: int = 0,
        apart: bool = True,
        grid: Sequence[int] = (384, 384),
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_steps=in_steps, out_steps=out_steps, channels=channels)
        _check(stem_widths, (*stem_scales, crown_convs), depth, heads, dropout)
        shrunk, levels = math.prod(stem_scales), len(depth)
        self.multiple = shrunk * 2 ** (levels - 1)
        if len(grid) != 2 or any(side < 1 or side % self.multiple for side in grid):
            raise OptionError(f"grid is a height and a width that divide by {self.multiple}, got {tuple(grid)}.")
        widths = [stem_widths[-1] * 2**level for level in range(levels)]
        grids = [(grid[0] // shrunk // 2**level, grid[1] // shrunk // 2**level) for level in range(levels)]
        axial = partial(AxialBlock, heads=heads, dropout=dropout)
        across = partial(CrossBlock, length=in_steps + out_steps, heads=heads, dropout=dropout)
        self.stem = _stem(channels, stem_widths, stem_scales)
        self.crown = _crown(stem_widths, stem_scales, convs=crown_convs)
        self.last = _linear(stem_widths[0], channels)
        nn.init.normal_(self.last.weight, std=0.02)  # first forecasts are dry, not noise
        self.past_positions = Positions(widths[0], in_steps, grids[0], apart=apart)
        self.future_positions = Positions(widths[-1], out_steps, grids[-1], apart=apart)
        self.start = _linear(widths[-1], widths[-1])
        self._make_global(widths, global_vectors)
        self.encoder, self.decoder, self.cross = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, (width, sides, blocks) in enumerate(zip(widths, grids, depth, strict=True)):
            top, whole = level == levels - 1, global_vectors > 0
            past, both = (in_steps, *sides), (max(in_steps, out_steps), *sides)
            encoder = (axial(width, past, reads_global=whole, last=top and n == blocks - 1) for n in range(blocks))
            self.encoder.append(nn.ModuleList(encoder))
            self.decoder.append(nn.ModuleList(axial(width, both) for _ in range(blocks - top)))
            self.cross.append(nn.ModuleList(across(width) for _ in range(blocks)))
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(PatchMerge(fine, coarse, 2) for fine, coarse in pairs)
        self.up = nn.ModuleList(nn.Sequential(*_grown(coarse, fine, 2)) for fine, coarse in pairs)

    def _make_global(self, widths: Sequence[int], count: int) -> None:
        """Create the global vectors, and what widens them between levels."""
        self.global_vectors = nn.Parameter(torch.empty(count, widths[0])) if count else None
        if self.global_vectors is not None:
            nn.init.trunc_normal_(self.global_vectors, std=0.02)
            self.down_global = nn.ModuleList(_linear(width, 2 * width) for width in widths[:-1])

    def forward(self, past_BTCHW: Tensor) -> Tensor:
        """Map past_BTCHW to future_BTCHW."""
        check_past(past_BTCHW, self)
        return on_multiple(self.predict, past_BTCHW, multiple=self.multiple)

    def predict(self, past_BTCHW: Tensor) -> Tensor:
        """All frames of the future; sides must divide by ``multiple``."""
        batch, steps = past_BTCHW.shape[:2]
        fields = self.segment(self.stem, channels_last(past_BTCHW.flatten(0, 1)))
        x = fields.movedim(1, -1).unflatten(0, (batch, steps))
        made = self.decode(self.encode(x + self.past_positions(*x.shape[2:4])))
        frames = self.segment(self.crown, made.flatten(0, 1).movedim(-1, 1))
        output: Tensor = self.last(frames.movedim(1, -1)).movedim(-1, 1).unflatten(0, (batch, self.out_steps))
        return output

    def encode(self, x_BTHWC: Tensor) -> list[Tensor]:
        """Return what every level makes of the past, finest first."""
        vectors = None if self.global_vectors is None else self.global_vectors.expand(len(x_BTHWC), -1, -1)
        levels = []
        for level, blocks in enumerate(self.encoder):
            if level:
                x_BTHWC = self.down[level - 1](x_BTHWC)
                vectors = None if vectors is None else self.down_global[level - 1](vectors)
            for block in blocks:  # type: ignore[attr-defined]
                x_BTHWC, vectors = self.segment(block, x_BTHWC, vectors)
            levels.append(x_BTHWC)
        return levels

    def decode(self, past: Sequence[Tensor]) -> Tensor:
        """From positions to the finest level, BTHWC."""
        batch, _, height, width, _ = past[-1].shape
        x: Tensor = self.start(self.future_positions(height, width)).expand(batch, -1, -1, -1, -1)
        for level in reversed(range(len(past))):
            if level < len(past) - 1:
                x = self.up[level](x.flatten(0, 1).movedim(-1, 1)).movedim(1, -1).unflatten(0, (batch, -1))
            blocks, crosses = list(self.decoder[level].children()), list(self.cross[level].children())
            for n, cross in enumerate(crosses, len(blocks) - len(crosses)):
                if n >= 0:  # the topmost level has nothing to see among its own pixels before it has seen the past
                    x, _ = self.segment(blocks[n], x)
                x = self.segment(cross, x, past[level])
        return x


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="linear")
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def _conv(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1), GroupNorm(outputs), nn.LeakyReLU(SLOPE, inplace=True)


def _grown(inputs: int, outputs: int, scale: int) -> tuple[nn.Module, ...]:
    return nn.Upsample(scale_factor=scale), nn.Conv2d(inputs, outputs, 3, padding=1)


def _stem(channels: int, widths: Sequence[int], scales: Sequence[int]) -> nn.Sequential:
    below = (channels, *widths[:-1])
    return nn.Sequential(*(Shrink(*sizes) for sizes in zip(below, widths, scales, strict=True)))


def _crown(widths: Sequence[int], scales: Sequence[int], *, convs: int) -> nn.Sequential:
    """Mirrors the stem, but that every stage narrows one later."""
    layers: list[nn.Module] = []
    above = (*widths[1:], widths[-1])
    for inputs, outputs, scale in reversed(list(zip(above, widths, scales, strict=True))):
        layers.extend(_grown(inputs, inputs, scale))
        for n in range(convs):
            layers.extend(_conv(outputs if n else inputs, outputs))
    return nn.Sequential(*layers)


def _heads(x_NLC: Tensor, heads: int, width: int) -> tuple[Tensor, ...]:
    """Split channels into parts as wide as the network, and each into heads: (N, heads, L, c) each."""
    output: tuple[Tensor, ...] = x_NLC.unflatten(2, (-1, heads, width // heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return output


def _together(x: Tensor) -> Tensor:
    """(N, heads, L, c) -> (N, L, C)."""
    return x.transpose(1, 2).flatten(2)


def _attend_to_both(first: Sequence[Tensor], second: Sequence[Tensor], bias: Tensor | None, drop: float) -> Tensor:
    """One softmax over two kinds of things, each with queries of its own: (query, key, value) of both.

    Queries lie side by side, and keys are zero where the query of the other kind is.
    """
    size = first[0].shape[-1]
    query = torch.cat((first[0], second[0]), dim=-1)
    key = torch.cat((functional.pad(first[1], (0, size)), functional.pad(second[1], (size, 0))), dim=-2)
    value = torch.cat((first[2], second[2]), dim=-2)
    mask = None if bias is None else functional.pad(bias, (0, second[1].shape[-2]))[None]
    return functional.scaled_dot_product_attention(query, key, value, mask, drop, scale=size**-0.5)


def _check(widths: Sequence[int], scales: Sequence[int], depth: Sequence[int], heads: int, dropout: float) -> None:
    if not widths or len(widths) != len(scales) - 1 or min(*widths, *scales) < 1:
        raise OptionError(
            f"stem_widths and stem_scales name one value >= 1 per stage, and crown_convs is >= 1; got "
            f"{tuple(widths)}, {tuple(scales[:-1])} and {scales[-1]}."
        )
    if any(width % max(1, width // 4) for width in widths):
        raise OptionError(f"stem_widths must be multiples of 4 or less than 8, got {widths}.")
    if not depth or min(depth) < 1:
        raise OptionError(f"depth names the blocks of one level or more, got {depth}.")
    if heads < 1 or widths[-1] % heads:
        raise OptionError(f"heads must divide the last of stem_widths, {widths[-1]}; got {heads}.")
    if not 0 <= dropout < 1:
        raise OptionError(f"dropout must lie in [0, 1), got {dropout}.")
