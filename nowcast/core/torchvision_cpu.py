"""Import torchvision beside torch's CPU build.

LPIPS needs torchvision, and Lightning imports it wherever it is installed. Its compiled operators want
CUDA libraries; without them its own import stops at the name of one. We use none of them: declaring
the two names is enough.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch

OPERATORS = ("nms", "qnms")
_declared: list[torch.library.Library] = []
"""Declarations live as long as their library."""


@cache
def import_torchvision() -> ModuleType:
    """Import torchvision, declaring the operators it names where they cannot be loaded."""
    try:
        return import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in OPERATORS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        return import_module("torchvision")
