"""Weights of convolutions that stay the same over a roll-out, packed once for oneDNN.

oneDNN reads weights in an order of its own. Torch reorders them anew for every call, which for the small fields of one
sequence takes as long as a third of the arithmetic. In a forecast ``Conv2d`` reorders its weights once, and is
otherwise torch's: in training, on other devices, in other precisions and under a compiler.

    with cached_weights(steps):
        for t in range(steps):
            x = layer(x)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from nowcast.models import speedups


@dataclass(frozen=True)
class WeightCache:
    """Tensors made from weights, by the weight's identity and the kind; each weight is kept alive beside them."""

    uses: int
    """How often each weight is used."""
    made: dict[tuple[int, str], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def get(self, weight: Tensor, kind: str, make: Callable[[], Tensor]) -> Tensor:
        """Return what ``make`` gives, called once for each weight and kind."""
        key = id(weight), kind
        if key not in self.made:
            self.made[key] = weight, make()
        return self.made[key][1]


_cache: ContextVar[WeightCache | None] = ContextVar("cache", default=None)


@contextmanager
def cached_weights(uses: int) -> Iterator[None]:
    """Promise that weights stay the same inside, so that what is made from each is made once.

    Args:
        uses: How often each weight is used.
    """
    token = _cache.set(WeightCache(uses))
    try:
        yield
    finally:
        _cache.reset(token)


def active_cache(x: Tensor, weight: Tensor) -> WeightCache | None:
    """Return the cache for a weight that is applied to ``x``; None where caching would not pay.

    That is outside ``cached_weights``, under a compiler, on other devices than CPUs, and beside single precision.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return None
    return _cache.get() if x.dtype == weight.dtype == torch.float32 else None


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: tuple[int, ...],
    stride: tuple[int, ...] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Apply torch's ``conv2d``, in a forecast with a packed weight where that pays.

    Args:
        x: Field, BCHW.
        weight: The parameter itself: a slice made anew for each call would be packed for each call.
        bias: Added to the output.
        padding: Zeros above and below, left and right.
        stride: Rows and columns.
        groups: Of channels that see only each other.
    """
    cache = None if torch.is_grad_enabled() else active_cache(x, weight)
    if cache is None or not torch.backends.mkldnn.is_available() or not speedups.enabled("packed"):
        return functional.conv2d(x, weight, bias, stride, padding, 1, groups)
    sizes = padding, stride, (1, 1), groups
    operators = torch.ops.mkldnn
    packed = cache.get(weight, "packed", lambda: operators._reorder_convolution_weight(weight, *sizes, list(x.shape)))
    made: Tensor = operators._convolution_pointwise(x, packed, bias, *sizes, "none", [], "")
    return made


class Conv2d(nn.Conv2d):
    """Torch's convolution, padded with zeros and not dilated."""

    def forward(self, x: Tensor) -> Tensor:
        """x_BCHW -> convolved_BCHW."""
        assert not isinstance(self.padding, str)
        return convolution(x, self.weight, self.bias, padding=self.padding, stride=self.stride, groups=self.groups)
