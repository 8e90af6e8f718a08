"""Layers that do not learn, before others that do: they keep no more than the gradient of their input needs.

Torch keeps the input of every convolution for the gradient of its kernel, even where none is wanted, and computes what
comes out of a normalisation once more or keeps it. Here a frozen convolution keeps nothing, and a frozen normalisation
with its activation keeps its input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input

from nowcast.models import speedups


def is_frozen(layer: nn.Module, x: Tensor) -> bool:
    """Tell whether a gradient runs through the layer and not into it.

    Never under a compiler; in mixed precision on the CPU alone, whose normalisations take both kinds of numbers.
    """
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad):
        return False
    mixed = x.device.type != "cpu" and torch.is_autocast_enabled(x.device.type)
    learns = any(weight.requires_grad for weight in layer.parameters())
    return not (mixed or learns) and speedups.enabled("frozen")


def convolve(conv: nn.Module, x_NCHW: Tensor) -> Tensor:
    """Return what a convolution without groups or dilation makes of a map; where it is frozen, nothing is kept."""
    if not isinstance(conv, nn.Conv2d) or not is_frozen(conv, x_NCHW):
        output: Tensor = conv(x_NCHW)
        return output
    apply: Callable[..., Tensor] = _Convolution.apply
    return apply(x_NCHW, conv.weight, conv.bias, conv.stride, conv.padding)


def group_silu(norm: nn.GroupNorm, x_NCHW: Tensor) -> Tensor:
    """SiLU of a group normalisation; where it is frozen, the map that goes in is kept."""
    if not is_frozen(norm, x_NCHW):
        return functional.silu(norm(x_NCHW))
    apply: Callable[..., Tensor] = _GroupSiLU.apply
    return apply(x_NCHW, norm.weight, norm.bias, norm.num_groups, norm.eps)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.how = x.shape, (stride, padding)
        return functional.conv2d(x, weight, bias, *ctx.how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return conv2d_input(ctx.size, weight.to(grad.dtype), grad, *ctx.how), None, None, None, None


class _GroupSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        x = x.contiguous(memory_format=_layout(x))
        made, mean, scale = torch.ops.aten.native_group_norm(x, weight, bias, *_sizes(x), groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        ctx.groups = groups
        return functional.silu(made, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        grad = grad.contiguous(memory_format=_layout(x))
        each = weight.view(1, ctx.groups, -1)
        gain = each * scale[:, :, None]
        shift = bias.view(1, ctx.groups, -1) - gain * mean[:, :, None]
        normed = torch.addcmul(shift.reshape(*x.shape[:2], 1, 1), x, gain.reshape(*x.shape[:2], 1, 1))
        grad = torch.ops.aten.silu_backward(grad, normed.to(grad.dtype)).to(x.dtype)
        wanted = [True, False, False]
        of_x = torch.ops.aten.native_group_norm_backward(grad, x, mean, scale, weight, *_sizes(x), ctx.groups, wanted)[
            0
        ]
        return of_x, None, None, None, None


def _layout(x_NCHW: Tensor) -> torch.memory_format:
    """Return the layout in memory: the kernels take either, for all maps alike."""
    last = x_NCHW.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _sizes(x_NCHW: Tensor) -> tuple[int, int, int]:
    return len(x_NCHW), x_NCHW.shape[1], x_NCHW[0, 0].numel()
