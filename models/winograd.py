"""Convolutions on CPUs with half the multiplications, for kernels that are used many times.

Lavin and Gray (2015), "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308, after Winograd's minimal
filtering: four outputs of a kernel of five weights from 8 products instead of 20. Here along rows only: a kernel of
5 x 5 costs 10 products a pixel instead of 25, and rounding grows to two or three times that of the plain sum; in both
directions it would be 4, but with ten times the rounding. The products are themselves a convolution, of kernels of
one row, so that all the work is done where torch is fastest.

Kernels have to be transformed first, which costs as much as a convolution of a small field: it pays in a recurrent
network, whose kernels stay the same over all steps. ``kept_kernels`` says that they do:

    with kept_kernels(steps):
        for t in range(steps):
            x = convolve(x, weight)

Outside, on other devices, in other precisions and under a compiler this is ``torch.nn.functional.conv2d``: GPUs
choose their algorithm themselves.

Shape letters: B batch, C and O channels in and out, H height, W width, K side of the kernel, F products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

ROWS = 4
"""Of the output, made at once."""
KERNELS = (3, 5)
PORTION = 2**24
"""Bytes of products taken at once, at least those of one field: small ones stay in the cache, and leave no holes in
the heap for more of the batch."""
LEAST_CHANNELS = 32
"""In and out, from which it pays."""
LEAST_PIXELS = 1024
"""Over all uses of a kernel, from which it pays to transform it."""
POINTS = (0.0, 1.0, -1.0, 2.0, -0.5, -2.0, 0.5)
"""Where polynomials are multiplied; infinity is one more. Near 1 in size, so that rounding stays small."""


@dataclass(frozen=True)
class Kept:
    """Transformed kernels by the identity of the plain one, which is kept alive beside it."""

    uses: int
    kernels: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


_kept: ContextVar[Kept | None] = ContextVar("kept", default=None)


@contextmanager
def kept_kernels(uses: int) -> Iterator[None]:
    """Kernels stay the same inside, so that each is transformed once.

    Args:
        uses: How often each is convolved with.
    """
    token = _kept.set(Kept(uses))
    try:
        yield
    finally:
        _kept.reset(token)


def convolve(x_BCHW: Tensor, weight_OCKK: Tensor, bias_O: Tensor | None = None, *,
             channels: slice = slice(None)) -> Tensor:  # fmt: skip
    """Convolution with an odd square kernel that keeps the size.

    Args:
        x_BCHW: Field.
        weight_OCKK: The parameter itself: what is cut out of it anew in every step would be transformed every time.
        bias_O: Added to what comes out.
        channels: Those of the kernel that the field has; the others are zeros, and left out.
    """
    kernel = weight_OCKK.shape[-1]
    kept = None if torch.compiler.is_compiling() else _kept.get()
    if kept is None or not _pays(x_BCHW, weight_OCKK, kept.uses):
        return functional.conv2d(x_BCHW, weight_OCKK[:, channels], bias_O, padding=kernel // 2)
    if id(weight_OCKK) not in kept.kernels:
        kept.kernels[id(weight_OCKK)] = weight_OCKK, spread(weight_OCKK)
    kernels = kept.kernels[id(weight_OCKK)][1]
    if channels != slice(None):
        kernels = kernels[:, channels]
    return _RowConvolution.apply(x_BCHW, kernels, bias_O, kernel)


def _pays(x: Tensor, weight: Tensor, uses: int) -> bool:
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or weight.shape[-1] not in KERNELS:
        return False
    plain = x.dtype == weight.dtype == torch.float32
    large = min(weight.shape[:2]) >= LEAST_CHANNELS and uses * x.shape[0] * x[0, 0].numel() >= LEAST_PIXELS
    return plain and large and x.shape[2] >= ROWS


@lru_cache
@torch.inference_mode(False)  # a forecast may ask first, and a training step next
def matrices(kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Transforms of outputs (4, F), kernel rows (F, K) and input rows (F, F), by the Toom-Cook algorithm."""
    products = ROWS + kernel - 1

    def powers(count: int) -> Tensor:
        """Values of the first powers of all points; at infinity only the last one counts."""
        finite = torch.tensor(POINTS[: products - 1], dtype=torch.float64)[:, None] ** torch.arange(count)
        return torch.cat([finite, torch.eye(count, dtype=torch.float64)[-1:]])

    inputs = torch.linalg.inv(powers(products)).T
    size = inputs.abs().amax(1, keepdim=True)  # products of like size lose the least
    return powers(ROWS).T.float(), (powers(kernel) * size).float(), (inputs / size).float()


def spread(weight_OCKK: Tensor) -> Tensor:
    """The kernels of one row that the products take: (F O, C, 1, K)."""
    _, inputs, kernel, _ = weight_OCKK.shape
    return torch.einsum("fr,ocrk->fock", matrices(kernel)[1], weight_OCKK).reshape(-1, inputs, 1, kernel)


class _RowConvolution(torch.autograd.Function):
    """Keeps the plain input for the backward pass, since its transform is twice as large and quickly made."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, kernels: Tensor, bias_O: Tensor | None, kernel: int) -> Tensor:
        ctx.save_for_backward(x_BCHW, kernels)
        ctx.kernel = kernel
        made = x_BCHW.new_empty(len(x_BCHW), len(kernels) // (kernel + ROWS - 1), *x_BCHW.shape[2:])
        size = _portion(made)
        for part, x in zip(made.split(size), x_BCHW.split(size), strict=True):
            rows = _write(_multiply(_read(x, kernel), kernels), kernel, x.shape[2])
            part.copy_(rows if bias_O is None else rows.add_(bias_O[:, None, None]))
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BOHW: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x_BCHW, kernels = ctx.saved_tensors
        wanted, size = ctx.needs_input_grad, _portion(grad_BOHW)
        of_x = torch.empty_like(x_BCHW, memory_format=torch.contiguous_format) if wanted[0] else None
        of_kernels = torch.zeros_like(kernels, memory_format=torch.contiguous_format) if wanted[1] else None
        for first in range(0, len(x_BCHW), size):
            part = slice(first, first + size)
            read, grad = _read(x_BCHW[part], ctx.kernel), _write_back(grad_BOHW[part], ctx.kernel)
            if of_x is not None:
                of_x[part] = _read_back(_multiply_back(grad, read, kernels), ctx.kernel, x_BCHW.shape[2])
            if of_kernels is not None:
                of_kernels += _correlate(grad, read, ctx.kernel)
        return of_x, of_kernels, grad_BOHW.sum((0, 2, 3)) if wanted[2] else None, None


def _portion(made_BOHW: Tensor) -> int:
    """How many fields to take at once, of which the products are twice as large as what comes out."""
    return max(1, PORTION // (2 * made_BOHW.element_size() * made_BOHW[0].numel()))


def _multiply(read_BFHW: Tensor, kernels: Tensor) -> Tensor:
    kernel = kernels.shape[-1]
    return functional.conv2d(read_BFHW, kernels, padding=(0, kernel // 2), groups=kernel + ROWS - 1)


def _multiply_back(grad_BFHW: Tensor, read_BFHW: Tensor, kernels: Tensor) -> Tensor:
    """Gradient of what the products read."""
    kernel = kernels.shape[-1]
    sizes = [1, 1], [0, kernel // 2], [1, 1], False, [0, 0], kernel + ROWS - 1, [True, False, False]
    return torch.ops.aten.convolution_backward(grad_BFHW, read_BFHW, kernels, None, *sizes)[0]


def _correlate(grad_BFHW: Tensor, read_BFHW: Tensor, kernel: int) -> Tensor:
    """Gradient of the kernels: products of matrices, which are faster here than torch's own convolution.

    Column by column of the kernel, since shifted copies of the input for all of them are large.
    """
    batch, _, tiles, width = grad_BFHW.shape
    products = kernel + ROWS - 1

    def by_product(x_BFHW: Tensor) -> Tensor:
        """(F, channels, all pixels)"""
        return x_BFHW.reshape(batch, products, -1, tiles * width).permute(1, 2, 0, 3).flatten(2)

    grad = by_product(grad_BFHW)
    padded = functional.pad(read_BFHW, (kernel // 2, kernel // 2))
    columns = [torch.bmm(grad, by_product(padded[..., k : k + width]).mT) for k in range(kernel)]
    return torch.stack(columns, dim=-1).flatten(0, 1)[:, :, None]


def _read(x_BCHW: Tensor, kernel: int) -> Tensor:
    """Rows as the products take them: (B, F C, H / 4, W)."""
    batch, _, height, width = x_BCHW.shape
    edge = kernel // 2
    padded = functional.pad(x_BCHW, (0, 0, edge, edge + -height % ROWS))
    rows = padded.unfold(2, ROWS + kernel - 1, ROWS)
    return torch.einsum("fr,bchwr->bfchw", matrices(kernel)[2], rows).reshape(batch, -1, rows.shape[2], width)


def _read_back(grad_BFHW: Tensor, kernel: int, height: int) -> Tensor:
    """Gradient of the input: tiles overlap by the reach of the kernel, and are added up."""
    batch, _, tiles, width = grad_BFHW.shape
    products = ROWS + kernel - 1
    grad = grad_BFHW.reshape(batch, products, -1, tiles, width)
    rows = torch.einsum("fr,bfchw->bchrw", matrices(kernel)[2], grad)
    first = functional.pad(rows[:, :, :, :ROWS].flatten(2, 3), (0, 0, 0, ROWS))
    rest = functional.pad(rows[:, :, :, ROWS:], (0, 0, 0, 2 * ROWS - products)).flatten(2, 3)
    first[:, :, ROWS:] += rest
    return first[:, :, kernel // 2 : kernel // 2 + height]


def _write(made_BFHW: Tensor, kernel: int, height: int) -> Tensor:
    """Products -> the rows of the output."""
    batch, _, tiles, width = made_BFHW.shape
    products = made_BFHW.reshape(batch, ROWS + kernel - 1, -1, tiles, width)
    rows = torch.einsum("rf,bfohw->bohrw", matrices(kernel)[0], products)
    return rows.reshape(batch, -1, tiles * ROWS, width)[:, :, :height]


def _write_back(grad_BOHW: Tensor, kernel: int) -> Tensor:
    """Gradient of the products."""
    batch, outputs, height, width = grad_BOHW.shape
    padded = functional.pad(grad_BOHW, (0, 0, 0, -height % ROWS))
    rows = padded.reshape(batch, outputs, -1, ROWS, width)
    return torch.einsum("rf,bohrw->bfohw", matrices(kernel)[0], rows).reshape(batch, -1, rows.shape[2], width)
