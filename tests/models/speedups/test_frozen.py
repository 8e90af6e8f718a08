"""Frozen layers: the same results and gradients as torch's, and less kept for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from nowcast.models import build
from nowcast.models.speedups.frozen import convolve, group_silu, is_frozen


def kept(run) -> int:
    """Numbers that are kept for the backward pass, the weights' own aside."""
    found: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: found.update({x.data_ptr(): x.numel()}) or x, lambda x: x):
        run()
    return sum(found.values())


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (1, 1)])
def test_a_frozen_convolution_is_torchs_and_keeps_no_map(stride, kernel):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, kernel, stride, kernel // 2).requires_grad_(False)
    x = torch.randn(2, 3, 9, 8, requires_grad=True)
    ours, theirs = convolve(conv, x), conv(x)
    torch.testing.assert_close(ours, theirs)
    way = torch.randn_like(ours)
    torch.testing.assert_close(torch.autograd.grad(ours, x, way), torch.autograd.grad(theirs, x, way))
    assert kept(lambda: convolve(conv, x)) == conv.weight.numel()


LAYOUTS = [torch.channels_last, torch.contiguous_format]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("way_layout", LAYOUTS, ids=str)
def test_a_frozen_normalisation_is_torchs_and_keeps_one_map(layout, way_layout):
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 6).requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    x = (3 + 2 * torch.randn(2, 6, 9, 8)).contiguous(memory_format=layout).requires_grad_()
    ours, theirs = group_silu(norm, x), functional.silu(norm(x))
    torch.testing.assert_close(ours, theirs)
    way = torch.randn(2, 6, 9, 8).contiguous(memory_format=way_layout)
    torch.testing.assert_close(torch.autograd.grad(ours, x, way), torch.autograd.grad(theirs, x, way))
    assert kept(lambda: group_silu(norm, x)) <= x.numel() + 5 * 6


def test_what_learns_is_not_frozen():
    conv, x = nn.Conv2d(3, 6, 3), torch.zeros(1, 3, 8, 8, requires_grad=True)
    assert not is_frozen(conv, x)
    conv.requires_grad_(False)
    assert is_frozen(conv, x)
    assert not is_frozen(conv, x.detach())
    with torch.no_grad():
        assert not is_frozen(conv, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_frozen(conv, x)


@pytest.mark.parametrize("half", [False, True])
def test_the_prompt_learns_the_same_and_less_is_kept(half):
    """The gradient of a prompt over frozen weights is that of the prompt where all learn."""
    torch.manual_seed(0)
    past, future = torch.rand(2, 2, 3, 1, 24, 20)
    grads, sizes = [], []
    for method in ("full", "prompt"):
        torch.manual_seed(1)
        model = build("gs2pm:debug", in_steps=3, out_steps=3).eval()
        model.tune(method)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            sizes.append(kept(lambda model=model: model.training_loss(past, future, 0.0)))
            loss = model.training_loss(past, future, 0.0)
        loss.backward()
        grads.append(torch.cat([side.grad.flatten() for side in model.prompt.parameters()]))
    error = (grads[0] - grads[1]).norm() / grads[0].norm()
    assert error < (0.02 if half else 1e-5), error
    assert sizes[1] < 0.8 * sizes[0]
