"""No network computes in float64, which Apple's MPS lacks: neither its forecast nor its loss."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nowcast.models import MODELS, model_class
from nowcast.models.speedups.winograd import matrices
from tests.models.test_models import frames, smallest

TRAINABLE = [name for name in MODELS if model_class(name).trainable]


class NoFloat64(TorchDispatchMode):
    """A device without float64: every operation that makes one fails."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"{function} made {leaf.dtype}")
        return made


def test_the_device_notices():
    with NoFloat64(), pytest.raises(TypeError, match="float64"):
        torch.ones(2).double()


@pytest.mark.parametrize("name", TRAINABLE)
def test_forecast_and_training_step_need_no_float64(name):
    model = smallest(name)
    side = 32
    clip = frames(1, 5, 1, side, side)
    for kernel in (3, 5):  # tables for the CPU, made there and once
        matrices(kernel)
    with NoFloat64():
        model.eval()(clip[:, :3])
        model.train().training_loss(clip[:, :3], clip[:, 3:], 0.5).backward()
