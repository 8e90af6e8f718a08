"""What rests on private interfaces of torch: speed-ups beside a plain path that computes the same.

    winograd.py   convolutions with fewer products: forecasts and training of recurrent networks on CPUs
    packed.py     weights of convolutions, packed once for a roll-out: forecasts of recurrent networks on CPUs
    frozen.py     frozen layers that keep less for the backward pass: prompt tuning

``OPERATORS`` lists what they call that torch does not document and may change with any minor version. Where torch is
not of a version in ``TESTED``, or lacks one of the operators, the plain path is taken: ordinary calls of torch.

One switch turns all of it off: the environment variable ``NOWCAST_SPEEDUPS=0``, or in Python

    with speedups.disabled():
        forecast = model(past)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch

TESTED = ("2.13",)
"""Minor versions of torch that the operators were tested with."""

OPERATORS = {
    "packed": ("mkldnn._reorder_convolution_weight", "mkldnn._convolution_pointwise"),
    "winograd": ("aten.convolution_backward",),
    "frozen": ("aten.native_group_norm", "aten.native_group_norm_backward", "aten.silu_backward"),
}
"""Speed-up -> operators of ``torch.ops`` that it calls."""

_disabled: ContextVar[bool] = ContextVar("disabled", default=False)


def enabled(name: str) -> bool:
    """Tell whether a speed-up may be used: see the top of this file.

    Args:
        name: A key of ``OPERATORS``.
    """
    if _disabled.get() or os.environ.get("NOWCAST_SPEEDUPS") == "0":
        return False
    return _supported(torch.__version__, OPERATORS[name])


@contextmanager
def disabled() -> Iterator[None]:
    """Take the plain path inside."""
    token = _disabled.set(True)
    try:
        yield
    finally:
        _disabled.reset(token)


@lru_cache
def _supported(version: str, operators: tuple[str, ...]) -> bool:
    return ".".join(version.split(".")[:2]) in TESTED and all(map(_exists, operators))


def _exists(operator: str) -> bool:
    namespace, _, name = operator.partition(".")
    return hasattr(getattr(torch.ops, namespace), name)
