"""Convolutions with fewer products are the same convolutions, forwards and backwards, and only where they pay."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nowcast.models import build
from nowcast.models.speedups import winograd
from nowcast.models.speedups.packed import cached_weights
from nowcast.models.speedups.winograd import convolve, matrices
from tests.models.test_models import frames


def kernels(outputs: int, inputs: int, side: int) -> torch.Tensor:
    weight = torch.randn(outputs, inputs, side, side, generator=torch.Generator().manual_seed(3))
    return weight.div(side * inputs**0.5).requires_grad_()


def is_fast(made: torch.Tensor) -> bool:
    return "_RowConvolution" in type(made.grad_fn).__name__


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("shape", [(2, 32, 16, 16), (1, 40, 13, 9), (3, 32, 4, 5), (1, 33, 7, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("portion", [1, winograd.PORTION])
def test_same_convolution_and_gradients(side, shape, layout, portion, monkeypatch):
    monkeypatch.setattr(winograd, "PORTION", portion)
    x, weight = frames(*shape).to(memory_format=layout).requires_grad_(), kernels(36, shape[1], side)
    upstream = frames(shape[0], 36, *shape[2:]).to(memory_format=layout)
    with cached_weights(10_000):
        made = convolve(x, weight)
    assert is_fast(made)
    exact_x, exact_weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    exact = functional.conv2d(exact_x, exact_weight, padding=side // 2)
    gradients = torch.autograd.grad(made, (x, weight), upstream)
    exact_gradients = torch.autograd.grad(exact, (exact_x, exact_weight), upstream.double())
    for ours, theirs in zip((made, *gradients), (exact, *exact_gradients), strict=True):
        assert (ours - theirs).norm() < 2e-6 * theirs.norm()


@pytest.mark.parametrize("channels", [slice(32), slice(32, None)])
def test_part_of_a_kernel_and_a_bias(channels):
    x, weight, bias = frames(2, 32, 16, 16), kernels(36, 64, 5), torch.rand(36).requires_grad_()
    with cached_weights(10_000):
        made = convolve(x, weight, bias, channels=channels)
    assert is_fast(made)
    plain = functional.conv2d(x, weight[:, channels], bias, padding=2)
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.autograd.grad(out.square().sum(), (weight, bias)) for out in (made, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("side", "products"), [(3, 6), (5, 8)])
def test_four_outputs_of_a_row_from_few_products(side, products):
    output, kernel, read = (matrix.double() for matrix in matrices(side))
    assert (output.shape, kernel.shape, read.shape) == ((4, products), (products, side), (products, products))
    weights, row = torch.randn(side).double(), torch.randn(products).double()
    expected = row.unfold(0, side, 1) @ weights
    torch.testing.assert_close(output @ ((kernel @ weights) * (read @ row)), expected, rtol=1e-5, atol=1e-5)


def test_a_kernel_is_transformed_once_and_kept_only_inside():
    x, weight = frames(1, 32, 32, 32), kernels(32, 32, 5)
    with cached_weights(8):
        first, second = convolve(x, weight), convolve(x, weight)
    assert first.grad_fn.next_functions == second.grad_fn.next_functions
    assert not is_fast(convolve(x, weight))


@pytest.mark.parametrize("height", [16, 13])
def test_what_comes_out_may_be_written_over(height):
    x, weight = frames(2, 32, height, 16), kernels(36, 32, 5)
    with cached_weights(10_000):
        made = convolve(x, weight)
    assert is_fast(made)
    made[:, 0] += 1
    (written,) = torch.autograd.grad(made.square().sum(), weight)
    plain = functional.conv2d(x, weight, padding=2)
    plain = plain + torch.eye(36)[0][:, None, None]
    torch.testing.assert_close(written, torch.autograd.grad(plain.square().sum(), weight)[0], rtol=1e-3, atol=1e-3)


def test_only_where_it_pays():
    x, weight = frames(1, 32, 8, 8), kernels(32, 32, 5)
    with cached_weights(128):
        assert is_fast(convolve(x, weight))
        assert not is_fast(convolve(x, kernels(32, 32, 7)))
        assert not is_fast(convolve(x[:, :31], kernels(32, 31, 5)))
        assert not is_fast(convolve(x[:, :, :3], weight))
        assert not is_fast(convolve(x.double(), weight.double()))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not is_fast(convolve(x, weight))
    with cached_weights(127):
        assert not is_fast(convolve(x, weight))


def test_a_forecast_transforms_kernels_of_fewer_uses_than_a_training_step():
    x, weight = frames(1, 32, 8, 8), kernels(32, 32, 5)
    assert not winograd._pays(x, weight, 127)
    with torch.no_grad():
        assert winograd._pays(x, weight, 16)
        assert not winograd._pays(x, weight, 15)


def test_a_forecast_before_does_not_hinder_training():
    matrices.cache_clear()
    with torch.inference_mode(), cached_weights(100):
        convolve(frames(1, 32, 8, 8), kernels(32, 32, 5))
    with cached_weights(100):
        convolve(frames(1, 32, 8, 8), kernels(32, 32, 5)).sum().backward()


def test_networks_use_it_in_forecasts_and_in_training():
    torch.manual_seed(1)
    model = build("predrnn", in_steps=3, out_steps=2, widths=(32, 32), patch=2)
    past, future = frames(2, 3, 1, 16, 16), frames(2, 2, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(past), model.roll_out(past), rtol=1e-4, atol=1e-5)
    gradients = []
    for checkpointing in (False, True):  # steps that are computed again take the plain way
        model.checkpointing = checkpointing
        torch.manual_seed(3)
        model.training_loss(past, future, 0.4).backward()
        gradients.append([weight.grad for weight in model.parameters()])
        model.zero_grad()
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
