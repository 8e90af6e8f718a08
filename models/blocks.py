"""What several networks share: frames folded into the batch or into channels, grids of any size, overlapping tiles.

Shape letters: B batch, T time, C channel, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nowcast.core.errors import OptionError
from nowcast.models.speedups.packed import Conv2d
from nowcast.models.speedups.winograd import PORTION, convolve

Result = TypeVar("Result")
Forecast = Callable[[Tensor], Tensor]
"""past_BTCHW -> future_BTCHW, same grid."""


FOLDS = {
    "pixels-first": (1, 2, 0),  # (row * p + column) * C + channel: PredRNN and its line, E3D-LSTM
    "rows-first": (0, 1, 2),  # channel * p² + row * p + column: torch's pixel_unshuffle
    "columns-first": (0, 2, 1),  # channel * p² + column * p + row: CMS-LSTM
}
"""How the pixels of a patch become channels: the order of (channel, row, column), slowest first."""


def each_frame(module: Callable[[Tensor], Tensor], frames_BCHW: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Apply a 2-D module to every frame of a sequence in one call."""
    return module(torch.cat(tuple(frames_BCHW))).chunk(len(frames_BCHW))


def fold(frames_NCHW: Tensor, patch: int, order: str) -> Tensor:
    """Space to depth: (N, C, H, W) -> (N, C * patch², H / patch, W / patch)."""
    count, channels, height, width = frames_NCHW.shape
    split = frames_NCHW.reshape(count, channels, height // patch, patch, width // patch, patch)
    inside = tuple((1, 3, 5)[axis] for axis in FOLDS[order])
    return split.permute(0, *inside, 2, 4).reshape(count, -1, height // patch, width // patch)


def unfold(folded_NCHW: Tensor, patch: int, order: str) -> Tensor:
    """Return the inverse of ``fold``."""
    count, _, height, width = folded_NCHW.shape
    sizes = [(-1, patch, patch)[axis] for axis in FOLDS[order]]
    split = folded_NCHW.reshape(count, *sizes, height, width)
    channel, row, column = (1 + FOLDS[order].index(axis) for axis in range(3))
    return split.permute(0, channel, 4, row, 5, column).reshape(count, -1, height * patch, width * patch)


def channels_last(x_NCHW: Tensor) -> Tensor:
    """Return the same map with its channels beside each other in memory, also where there is only one.

    Of a single channel torch cannot tell the layout, and lets all that follows be channels-first.
    """
    count, channels, height, width = x_NCHW.shape
    return x_NCHW.permute(0, 2, 3, 1).flatten().view(count, height, width, channels).permute(0, 3, 1, 2)


def portions(maps_NCHW: Tensor, channels: int) -> tuple[Tensor, ...]:
    """Return the maps, as many at a time as should go together through layers of so many channels at their full size.

    On a CPU few: buffers beyond 32 MiB are mapped anew by the C library whenever they are used, which takes longer
    than arithmetic on them, and small ones stay in the cache. Elsewhere all.
    """
    if maps_NCHW.device.type != "cpu" or torch.compiler.is_compiling():
        return (maps_NCHW,)
    height, width = maps_NCHW.shape[-2:]
    output: tuple[Tensor, ...] = maps_NCHW.split(max(1, PORTION // (4 * channels * height * width)))
    return output


def lean(function: Callable[..., Result], *tensors: Tensor | None) -> Result:
    """Call cheap arithmetic and keep only what goes in: it is done again in the backward pass.

    A compiler decides that by itself, and without gradients nothing is kept anyway.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*tensors)
    made: Result = checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
    return made


def in_portions(
    function: Callable[..., tuple[Tensor, ...]], fields: Sequence[Tensor | None], shared: Sequence[Tensor] = ()
) -> tuple[Tensor, ...]:
    """``lean`` arithmetic on maps, on CPUs of a few samples at a time.

    What lies between is then small and soon gone, so that it stays in the cache and leaves no holes in the heap
    between the maps that are kept.

    Args:
        function: (*fields, *shared) -> maps; no sample may depend on another.
        fields: With all samples; the first is the largest.
        shared: What else needs a gradient.
    """
    first = fields[0]
    assert first is not None
    if first.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return lean(function, *fields, *shared)
    apply: Callable[..., tuple[Tensor, ...]] = _InPortions.apply
    return apply(function, len(fields), *fields, *shared)


class _InPortions(torch.autograd.Function):
    """Calls a function portion by portion, and once more in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., tuple[Tensor, ...]], count: int, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.function, ctx.count = function, count
        ctx.save_for_backward(*tensors)
        whole: list[Tensor] = []
        for part in _parts(tensors):
            made = function(*_cut(tensors, count, part))
            whole = whole or [_as_large(one, tensors) for one in made]
            for all_samples, some in zip(whole, made, strict=True):
                all_samples[part] = some
        return tuple(whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad[2:]
        whole = [torch.zeros_like(one) if want else None for one, want in zip(tensors, wanted, strict=True)]
        for part in _parts(tensors):
            inputs = [None if one is None else one.detach() for one in _cut(tensors, ctx.count, part)]
            asked = [one.requires_grad_() for one, want in zip(inputs, wanted, strict=True) if want and one is not None]
            with torch.enable_grad():
                made = ctx.function(*inputs)
            got = torch.autograd.grad(made, asked, [grad[part] for grad in grads])
            sums = [(i, one) for i, one in enumerate(whole) if one is not None]
            for (i, all_samples), some in zip(sums, got, strict=True):
                if i < ctx.count:
                    all_samples[part] = some
                else:
                    all_samples += some
        return None, None, *whole


def _parts(tensors: Sequence[Tensor | None]) -> list[slice]:
    """Return the samples that go together, by the size of the first map."""
    first = tensors[0]
    assert first is not None
    size = max(1, PORTION // (4 * first.element_size() * first[0].numel()))
    return [slice(start, start + size) for start in range(0, len(first), size)]


def _cut(tensors: Sequence[Tensor | None], count: int, part: slice) -> list[Tensor | None]:
    """Return some samples of the first ``count`` tensors, and the others."""
    return [one[part] if one is not None and i < count else one for i, one in enumerate(tensors)]


def _as_large(made: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
    """Space for what is made of all samples, laid out like ``made``."""
    first = tensors[0]
    assert first is not None
    last = made.ndim == 4 and made.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty((len(first), *made.shape[1:]), dtype=made.dtype, memory_format=layout)


class FieldNorm(nn.Module):
    """Normalises every sample over channels and pixels together.

    Args:
        channels: Of the field.
        grid: Scale and shift per element of a field of this height and width; None: per channel, for any grid.
            Or of this time, height and width: then fields are NCTHW.
    """

    def __init__(self, channels: int, grid: tuple[int, ...] | None = None, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.grid, self.eps = grid, eps
        # Laid out in memory as convolutions leave their fields, channels last, so that nothing has to be copied.
        fields = [fill((*(grid or ()), channels)) for fill in (torch.ones, torch.zeros)]
        self.weight, self.bias = (nn.Parameter(field.movedim(-1, 0)) for field in fields)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Normalise x_NCHW, or NCTHW; the shape stays."""
        x_NCHW = x_NCHW.to(self.weight.dtype)  # not in half precision, which only GPUs see to by themselves
        if self.grid is None:
            return functional.group_norm(x_NCHW, 1, self.weight, self.bias, self.eps)
        weight, bias = self.weight.movedim(0, -1), self.bias.movedim(0, -1)
        return functional.layer_norm(x_NCHW.movedim(1, -1), weight.shape, weight, bias, self.eps).movedim(-1, 1)

    def of_zeros(self) -> Tensor:
        """Return what it makes of a field of zeros, to be broadcast: what a convolution of zeros is spared."""
        return self.bias if self.grid else self.bias[:, None, None]


class FieldConv(nn.Sequential):
    """Convolution without bias that keeps the size, and a ``FieldNorm`` after it if asked for.

    Args:
        inputs: Channels of the field.
        outputs: Channels that come out.
        kernel: Side, odd.
        norm: Normalise what comes out.
        grid: See ``FieldNorm``.
    """

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, norm: bool = False, grid: tuple[int, int] | None = None
    ) -> None:
        conv = Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        super().__init__(conv, *([FieldNorm(outputs, grid)] if norm else []))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map x_NCHW to (N, outputs, H, W)."""
        made = convolve(x_NCHW, self[0].weight)  # type: ignore[arg-type]
        return self[1](made) if len(self) > 1 else made

    def of(self, x_NCHW: Tensor | None) -> Tensor | None:
        """None stands for zeros, which are not convolved, in and out."""
        if x_NCHW is None:
            return self[-1].of_zeros() if isinstance(self[-1], FieldNorm) else None
        output: Tensor | None = self(x_NCHW)
        return output

    def added_to(self, *fields_NCHW: Tensor, x_NCHW: Tensor | None) -> tuple[Tensor, ...]:
        """Add what comes out, split as wide as the fields are; None stands for zeros."""
        made = self.of(x_NCHW)
        if made is None:
            return fields_NCHW
        parts = made.split([field.shape[1] for field in fields_NCHW], dim=-3)
        return tuple(field + part for field, part in zip(fields_NCHW, parts, strict=True))


def on_multiple(forecast: Forecast, past_BTCHW: Tensor, *, multiple: int) -> Tensor:
    """Run a forecast that needs sides divisible by ``multiple`` on a grid of any size.

    Rows and columns are added below and to the right, so pixels keep their place in the network's
    strides, and cut off again. They repeat the edge: zeros would draw a dry wall beside the rain.
    """
    height, width = past_BTCHW.shape[-2:]
    return forecast(to_multiple(past_BTCHW, multiple))[..., :height, :width]


def to_multiple(frames: Tensor, multiple: int) -> Tensor:
    """Repeats the last row and column of NCHW or BTCHW up to sides that ``multiple`` divides."""
    height, width = (math.ceil(size / multiple) * multiple for size in frames.shape[-2:])
    return _grow(frames, height, width)


def tiled(forecast: Forecast, past_BTCHW: Tensor, *, tile: tuple[int, int], overlap: int) -> Tensor:
    """Run a forecast that is tied to one grid size over overlapping tiles of that size.

    Tiles fade into each other with raised-cosine weights. Where they agree the result is exactly
    theirs. One tile is in memory at a time beside the result, so call it without gradients.

    Args:
        forecast: Network for frames of ``tile``.
        past_BTCHW: Frames of any size; a side shorter than the tile is padded with its edge.
        tile: Height and width of a tile, pixels.
        overlap: Pixels shared by neighbours, at least; more where tiles do not divide the grid.

    Raises:
        ValueError: If the overlap is negative or not smaller than the tile.
    """
    if not 0 <= overlap < min(tile):
        raise OptionError(f"overlap must be >= 0 and smaller than the tile {tile}, got {overlap}.")
    height, width = past_BTCHW.shape[-2:]
    past = _grow(past_BTCHW, max(height, tile[0]), max(width, tile[1]))
    weight = _fade(tile[0], overlap)[:, None] * _fade(tile[1], overlap)
    weight = weight.to(past.device)
    total, blend = past.new_zeros(past.shape[-2:]), past.new_zeros(())
    starts = (_starts(size, side, overlap) for size, side in zip(past.shape[-2:], tile, strict=True))
    for top, left in product(*starts):
        window = (..., slice(top, top + tile[0]), slice(left, left + tile[1]))
        piece = forecast(past[window])
        if not blend.ndim:  # only the first tile tells length and channels of the forecast
            blend = piece.new_zeros((*piece.shape[:-2], *past.shape[-2:]))
        # A running mean moves by the difference only, so equal tiles leave no rounding behind.
        total[window] += weight
        blend[window] += (piece - blend[window]) * (weight / total[window]).to(piece.dtype)
    return blend[..., :height, :width]


def _grow(frames: Tensor, height: int, width: int) -> Tensor:
    """Repeats the last row and column of NCHW or BTCHW up to the given size."""
    below, right = height - frames.shape[-2], width - frames.shape[-1]
    if not below and not right:
        return frames
    grown = functional.pad(frames.flatten(0, 1), (0, right, 0, below), mode="replicate")
    output: Tensor = grown.unflatten(0, frames.shape[:2])
    return output


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the fewest evenly spread tiles that cover ``size``."""
    count = max(1, math.ceil((size - overlap) / (tile - overlap)))
    return [round(k * (size - tile) / max(1, count - 1)) for k in range(count)]


def _fade(size: int, overlap: int) -> Tensor:
    """Weight along one side: rises over ``overlap`` pixels, then 1, then falls; never 0."""
    edge = torch.arange(size, dtype=torch.float32) + 0.5
    edge = torch.minimum(edge, edge.flip(0))
    return torch.sin((edge / max(overlap, 1)).clamp(max=1) * (torch.pi / 2)) ** 2
