"""Convolutions on CPUs with half the multiplications, for kernels that are used many times.

Lavin and Gray (2015), "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308, after Winograd's minimal
filtering: four outputs of a kernel of five weights from 8 products instead of 20. Here along rows only: a kernel of
5 x 5 costs 10 products a pixel instead of 25, and rounding grows to two or three times that of the plain sum; in both
directions it would be 4, but with ten times the rounding. The products are themselves a convolution, of kernels of
one row, so that all the work is done where torch is fastest.

Kernels have to be transformed first, which costs as much as a convolution of a small field: it pays in a recurrent
network, whose kernels stay the same over all steps. ``packed.cached_weights`` says that they do:

    with cached_weights(steps):
        for t in range(steps):
            x = convolve(x, weight)

Outside, on other devices, in other precisions and under a compiler this is ``packed.convolution``: GPUs choose their
algorithm themselves.

Shape letters: B batch, C and O channels in and out, H height, W width, K side of the kernel, F products, V tiles of
four rows. Products lie in memory as (B, V, W, F, channels): so nothing has to be copied to be transformed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nowcast.models import speedups
from nowcast.models.speedups.packed import WeightCache, active_cache, convolution

PORTION = 2**24
"""Bytes of the largest map, where maps are taken in portions: small ones stay in the cache, and leave no holes in the
heap for more of the batch."""
ROWS = 4
"""Of the output, made at once."""
KERNELS = (3, 5)
LEAST_CHANNELS = 32
"""In and out, from which it pays."""
LEAST_PIXELS = 1024
"""Over all uses of a kernel, from which it pays to transform it for a forecast."""
LEAST_PIXELS_TRAINING = 8192
"""The same for a training step, in which kernels are transformed back too."""
POINTS = (0.0, 1.0, -1.0, 2.0, -0.5, -2.0, 0.5)
"""Where polynomials are multiplied; infinity is one more. Near 1 in size, so that rounding stays small."""


def convolve(
    x: Tensor | Sequence[Tensor], weight_OCKK: Tensor, bias_O: Tensor | None = None, *, channels: slice = slice(None)
) -> Tensor:
    """Convolution with an odd square kernel that keeps the size.

    Args:
        x: Field BCHW; or several whose channels lie one after the other, which are not kept a second time as one.
        weight_OCKK: The parameter itself: what is cut out of it anew in every step would be transformed every time.
        bias_O: Added to what comes out.
        channels: Those of the kernel that the field has; the others are zeros, and left out.
    """
    fields = (x,) if isinstance(x, Tensor) else tuple(x)
    kernel = weight_OCKK.shape[-1]
    cache = active_cache(fields[0], weight_OCKK)
    if cache is None or not _pays(fields[0], weight_OCKK, cache.uses) or not speedups.enabled("winograd"):
        whole = fields[0] if len(fields) == 1 else torch.cat(fields, dim=1)
        return convolution(whole, _cut(weight_OCKK, channels, cache), bias_O, padding=(kernel // 2, kernel // 2))
    kernels = _cut(cache.get(weight_OCKK, "transformed", lambda: transformed(weight_OCKK)), channels, cache)
    if torch.is_grad_enabled():
        convolved: Callable[..., Tensor] = _RowConvolution.apply
        return convolved(kernels, bias_O, *fields)
    return _convolved(fields, kernels, bias_O, convolution)


def _cut(weight: Tensor, channels: slice, cache: WeightCache | None) -> Tensor:
    """Select input channels of a weight; with a cache the same tensor each time."""
    if channels == slice(None):
        return weight
    return weight[:, channels] if cache is None else cache.get(weight, str(channels), lambda: weight[:, channels])


def _pays(x: Tensor, weight: Tensor, uses: int) -> bool:
    least = LEAST_PIXELS_TRAINING if torch.is_grad_enabled() else LEAST_PIXELS
    large = min(weight.shape[:2]) >= LEAST_CHANNELS and uses * x.shape[0] * x[0, 0].numel() >= least
    return large and weight.shape[-1] in KERNELS and x.shape[2] >= ROWS


@lru_cache
@torch.inference_mode(False)  # a forecast may ask first, and a training step next
def matrices(kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the transforms of outputs (4, F), kernel rows (F, K) and input rows (F, F), by the Toom-Cook algorithm."""
    products = ROWS + kernel - 1

    def powers(count: int) -> Tensor:
        """Values of the first powers of all points; at infinity only the last one counts."""
        finite = torch.tensor(POINTS[: products - 1], dtype=torch.float64)[:, None] ** torch.arange(count)
        return torch.cat([finite, torch.eye(count, dtype=torch.float64)[-1:]])

    inputs = torch.linalg.inv(powers(products)).T
    size = inputs.abs().amax(1, keepdim=True)  # products of like size lose the least
    return powers(ROWS).T.float(), (powers(kernel) * size).float(), (inputs / size).float()


def transformed(weight_OCKK: Tensor) -> Tensor:
    """Transform kernels to those of one row that the products take: (F O, C, 1, K)."""
    _, inputs, kernel, _ = weight_OCKK.shape
    return torch.einsum("fr,ocrk->fock", matrices(kernel)[1], weight_OCKK).reshape(-1, inputs, 1, kernel)


class _RowConvolution(torch.autograd.Function):
    """Keeps the plain input for the backward pass, since its transform is twice as large and quickly made."""

    @staticmethod
    def forward(ctx: Any, kernels: Tensor, bias_O: Tensor | None, *fields_BCHW: Tensor) -> Tensor:
        ctx.save_for_backward(kernels, *fields_BCHW)
        return _convolved(fields_BCHW, kernels, bias_O, functional.conv2d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BOHW: Tensor) -> tuple[Tensor | None, ...]:
        kernels, *fields = ctx.saved_tensors
        for_kernels, for_bias, *for_fields = ctx.needs_input_grad
        of_kernels = torch.zeros_like(kernels) if for_kernels else None
        of_fields = [_space(*field.shape) if wanted else None for field, wanted in zip(fields, for_fields, strict=True)]
        for part in _portions(grad_BOHW):
            read, grad = _read([field[part] for field in fields], kernels), _write_back(grad_BOHW[part], kernels)
            if any(for_fields):
                made = _read_back(_multiply_back(grad, read, kernels), kernels, grad_BOHW.shape[2])
                for whole, piece in zip(
                    of_fields, made.split([field.shape[1] for field in fields], dim=1), strict=True
                ):
                    if whole is not None:
                        whole[part] = piece
            if of_kernels is not None:
                of_kernels += _correlate(grad, read, kernels)
        return of_kernels, grad_BOHW.sum((0, 2, 3)) if for_bias else None, *of_fields


def _convolved(
    fields_BCHW: Sequence[Tensor], kernels: Tensor, bias_O: Tensor | None, conv: Callable[..., Tensor]
) -> Tensor:
    """Return what comes out, channels last, a portion of the batch at a time; ``conv`` multiplies."""
    batch, _, height, width = fields_BCHW[0].shape
    outputs, tiles = len(kernels) // _products(kernels), -(-height // ROWS)
    made_BOHW = _space(batch, outputs, tiles * ROWS, width)
    made_BVRWO = made_BOHW.movedim(1, -1).unflatten(1, (tiles, ROWS))
    for part in _portions(made_BOHW):
        rows = _write(_multiply(_read([field[part] for field in fields_BCHW], kernels), kernels, conv), kernels)
        torch.add(rows, 0 if bias_O is None else bias_O, out=made_BVRWO[part].transpose(2, 3))
    # No view is handed out, for autograd allows nobody to write into one.
    whole = height == tiles * ROWS
    return made_BOHW if whole else made_BOHW[:, :, :height].contiguous(memory_format=torch.channels_last)


def _space(*shape: int) -> Tensor:
    return torch.empty(shape, memory_format=torch.channels_last)


def _products(kernels: Tensor) -> int:
    return kernels.shape[-1] + ROWS - 1


def _portions(made_BOHW: Tensor) -> list[slice]:
    """Which fields to take at once, of which the products are twice as large as what comes out."""
    size = max(1, PORTION // (2 * made_BOHW.element_size() * made_BOHW[0].numel()))
    return [slice(first, first + size) for first in range(0, len(made_BOHW), size)]


def _multiply(read_BVWFC: Tensor, kernels: Tensor, conv: Callable[..., Tensor]) -> Tensor:
    """Return the products: (B, V, W, F, O)."""
    sizes: dict[str, Any] = {"padding": (0, kernels.shape[-1] // 2), "groups": _products(kernels)}
    made_BVWO = conv(_as_field(read_BVWFC), kernels, **sizes).movedim(1, -1)
    return torch.unflatten(made_BVWO, -1, (_products(kernels), -1))


def _multiply_back(grad_BVWFO: Tensor, read_BVWFC: Tensor, kernels: Tensor) -> Tensor:
    """Gradient of what the products read."""
    sizes = [1, 1], [0, kernels.shape[-1] // 2], [1, 1], False, [0, 0], _products(kernels), [True, False, False]
    grad, read = _as_field(grad_BVWFO), _as_field(read_BVWFC)
    made = torch.ops.aten.convolution_backward(grad, read, kernels, None, *sizes)[0]
    output: Tensor = made.movedim(1, -1).reshape(read_BVWFC.shape)
    return output


def _as_field(x_BVWFC: Tensor) -> Tensor:
    """Tiles as rows, and the channels of all products as channels."""
    return x_BVWFC.flatten(3).movedim(-1, 1)


def _correlate(grad_BVWFO: Tensor, read_BVWFC: Tensor, kernels: Tensor) -> Tensor:
    """Gradient of the kernels: products of matrices, which are faster here than torch's own convolution.

    For every column of the kernel all pixels at once meet those so many columns beside them. Where that leads into
    the row below or above, there are zeros, written over what the columns before have done with.
    """
    edge = kernels.shape[-1] // 2
    columns = {0: _matched(grad_BVWFO, read_BVWFC, 0)}
    last = grad_BVWFO[:, :, -edge:].clone()
    for shift in range(1, edge + 1):
        grad_BVWFO[:, :, -shift:] = 0
        columns[shift] = _matched(grad_BVWFO, read_BVWFC, shift)
    grad_BVWFO[:, :, -edge:] = last
    for shift in range(1, edge + 1):
        read_BVWFC[:, :, -shift:] = 0
        columns[-shift] = _matched(grad_BVWFO, read_BVWFC, -shift)
    return torch.stack([columns[shift] for shift in range(-edge, edge + 1)], dim=-1).flatten(0, 1)[:, :, None]


def _matched(grad_BVWFO: Tensor, read_BVWFC: Tensor, shift: int) -> Tensor:
    """For every product the sum over all pixels of gradient times what lies ``shift`` pixels further: (F, O, C)."""
    grad, read = grad_BVWFO.flatten(0, 2), read_BVWFC.flatten(0, 2)
    count = max(len(grad) - abs(shift), 0)
    grad, read = grad[max(-shift, 0) :][:count], read[max(shift, 0) :][:count]
    return torch.bmm(grad.permute(1, 2, 0), read.transpose(0, 1))


def _read(fields_BCHW: Sequence[Tensor], kernels: Tensor) -> Tensor:
    """Rows as the products take them: (B, V, W, F, C)."""
    batch, _, height, width = fields_BCHW[0].shape
    edge, tiles = kernels.shape[-1] // 2, -(-height // ROWS)
    rows_BHWC = kernels.new_empty(batch, tiles * ROWS + 2 * edge, width, kernels.shape[1])
    rows_BHWC[:, :edge], rows_BHWC[:, edge + height :] = 0, 0
    inside = rows_BHWC[:, edge : edge + height].split([field.shape[1] for field in fields_BCHW], dim=-1)
    for piece, field in zip(inside, fields_BCHW, strict=True):
        piece.copy_(field.movedim(1, -1))
    return _by_tile(matrices(kernels.shape[-1])[2], rows_BHWC, tiles)


def _read_back(grad_BVWFC: Tensor, kernels: Tensor, height: int) -> Tensor:
    """Gradient of the input, BCHW: tiles overlap by the reach of the kernel, and are added up."""
    batch, tiles, width, _, channels = grad_BVWFC.shape
    rows = _at_pixels(matrices(kernels.shape[-1])[2].T, grad_BVWFC).transpose(2, 3)
    made_BHWC = rows.new_empty(batch, (tiles + 1) * ROWS, width, channels)
    made_BHWC[:, -ROWS:] = 0
    made_BHWC[:, :-ROWS].unflatten(1, (tiles, ROWS)).copy_(rows[:, :, :ROWS])
    made_BHWC[:, ROWS:].unflatten(1, (tiles, ROWS))[:, :, : rows.shape[2] - ROWS] += rows[:, :, ROWS:]
    edge = kernels.shape[-1] // 2
    return made_BHWC[:, edge : edge + height].movedim(-1, 1)


def _write(made_BVWFO: Tensor, kernels: Tensor) -> Tensor:
    """Products -> the rows of the output: (B, V, W, rows, O)."""
    return _at_pixels(matrices(kernels.shape[-1])[0], made_BVWFO)


def _write_back(grad_BOHW: Tensor, kernels: Tensor) -> Tensor:
    """Gradient of the products: (B, V, W, F, O)."""
    height = grad_BOHW.shape[2]
    rows_BHWO = functional.pad(grad_BOHW.movedim(1, -1), (0, 0, 0, 0, 0, -height % ROWS)).contiguous()
    return _by_tile(matrices(kernels.shape[-1])[0].T, rows_BHWO, rows_BHWO.shape[1] // ROWS)


def _by_tile(matrix_FR: Tensor, rows_BHWC: Tensor, tiles: int) -> Tensor:
    """Products of a matrix and some rows from every fourth on: (B, V, W, F, C)."""
    batch, _, width, channels = rows_BHWC.shape
    products, rows = matrix_FR.shape
    made = rows_BHWC.new_empty(batch, tiles, width, products, channels)
    matrices_WFR = matrix_FR.expand(width, -1, -1)
    for field, made_field in zip(rows_BHWC, made, strict=True):
        for tile, made_tile in enumerate(made_field):
            first = ROWS * tile
            torch.bmm(matrices_WFR, field[first : first + rows].transpose(0, 1), out=made_tile)
    return made


def _at_pixels(matrix_RF: Tensor, x_BVWFC: Tensor) -> Tensor:
    """Products of a matrix and what lies at every pixel of the tiles: (B, V, W, R, C)."""
    at_pixels = x_BVWFC.flatten(0, 2)
    output: Tensor = torch.bmm(matrix_RF.expand(len(at_pixels), -1, -1), at_pixels).unflatten(0, x_BVWFC.shape[:3])
    return output
