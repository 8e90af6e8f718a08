"""Weights that stay the same over a roll-out, made ready once for the library that computes with them on CPUs.

oneDNN reads weights in an order of its own. torch sorts them anew for every call, which for the small fields of one
sequence takes as long as a third of the arithmetic, and gives products of matrices to another library, which is
slower at their sizes. In a forecast ``Conv2d`` and ``Linear`` sort their weights once, and are otherwise torch's:
in training, on other devices, in other precisions and under a compiler they do what those do.

    with kept_weights(steps):
        for t in range(steps):
            x = layer(x)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PORTION = 2**24
"""Bytes of the largest map, where maps are taken in portions: small ones stay in the cache, and leave no holes in the
heap for more of the batch."""


@dataclass(frozen=True)
class Kept:
    """What was made of weights, by the weight's identity and the kind; each weight is kept alive beside it."""

    uses: int
    made: dict[tuple[int, str], tuple[Tensor, Any]] = field(default_factory=dict)

    def of(self, weight: Tensor, kind: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once for each weight and kind."""
        key = id(weight), kind
        if key not in self.made:
            self.made[key] = weight, make()
        return self.made[key][1]


_kept: ContextVar[Kept | None] = ContextVar("kept", default=None)


@contextmanager
def kept_weights(uses: int) -> Iterator[None]:
    """Weights stay the same inside, so that each is made ready once.

    Args:
        uses: How often each is used.
    """
    token = _kept.set(Kept(uses))
    try:
        yield
    finally:
        _kept.reset(token)


def keeping(x: Tensor, weight: Tensor) -> Kept | None:
    """Where to keep what is made of a weight for ``x``; None where it would not pay: see the top of this file."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return None
    return _kept.get() if x.dtype == weight.dtype == torch.float32 else None


def packing(x: Tensor, weight: Tensor) -> Kept | None:
    """The same for what has no gradient."""
    return None if torch.is_grad_enabled() or not torch.backends.mkldnn.is_available() else keeping(x, weight)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: tuple[int, ...],
    stride: tuple[int, ...] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """torch's ``conv2d``, with a packed weight where that pays.

    Args:
        weight: The parameter itself: what is cut out of it anew would be packed every time.
    """
    if (kept := packing(x, weight)) is None:
        return functional.conv2d(x, weight, bias, stride, padding, 1, groups)
    sizes = padding, stride, (1, 1), groups
    operators = torch.ops.mkldnn
    packed = kept.of(weight, "packed", lambda: operators._reorder_convolution_weight(weight, *sizes, list(x.shape)))
    return operators._convolution_pointwise(x, packed, bias, *sizes, "none", [], "")


class Conv2d(nn.Conv2d):
    """torch's, padded with zeros and not dilated."""

    def forward(self, x: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)
        return convolution(x, self.weight, self.bias, padding=self.padding, stride=self.stride, groups=self.groups)


class Linear(nn.Linear):
    """torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """``gelu`` of what it makes, in a forecast while that is still in the cache."""
        return linear(x, self.weight, self.bias, gelu=True)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """torch's ``linear``, and ``gelu`` after it if asked for, with a packed weight where that pays."""
    if (kept := packing(x, weight)) is None:
        made = functional.linear(x, weight, bias)
        return functional.gelu(made) if gelu else made
    rows = x.numel() // x.shape[-1]
    packed = kept.of(weight, "packed", lambda: torch.ops.mkldnn._reorder_linear_weight(weight, rows))
    after: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, *after)
