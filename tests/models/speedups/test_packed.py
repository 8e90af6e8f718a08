"""Packed weights compute what torch's layers do, are packed once a roll-out, and only where no gradient is wanted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nowcast.models import build
from nowcast.models.speedups import packed
from nowcast.models.speedups.packed import cached_weights
from tests.models.test_models import frames

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")

LAYERS = {
    "convolution": (lambda: packed.Conv2d(6, 10, 3, stride=2, padding=1), (2, 6, 13, 9)),
    "grouped": (lambda: packed.Conv2d(6, 12, (1, 5), padding=(0, 2), groups=3, bias=False), (2, 6, 7, 9)),
    "pointwise": (lambda: packed.Conv2d(6, 1, 1), (1, 6, 5, 5)),
}
each_layer = pytest.mark.parametrize("layer", LAYERS)


def layer_and_field(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    make, shape = LAYERS[name]
    return make(), frames(*shape)


@needs_onednn
@each_layer
def test_the_same_as_torchs_layers(layer, monkeypatch):
    module, x = layer_and_field(layer)
    plain = super(type(module), module).forward(x)
    with torch.inference_mode(), cached_weights(3):
        torch.testing.assert_close(module(x), plain)
        monkeypatch.setattr(packed.WeightCache, "get", lambda kept, weight, kind, make: kept.made[id(weight), kind][1])
        torch.testing.assert_close(module(x), plain)  # with the weight that the first call packed
        torch.testing.assert_close(module(x[:1]), plain[:1])


@each_layer
def test_training_is_torchs_own(layer):
    module, x = layer_and_field(layer)
    with cached_weights(3):
        made = module(x)
    made.square().sum().backward()
    assert torch.equal(made, super(type(module), module).forward(x))
    assert all(weight.grad is not None for weight in module.parameters())


@pytest.mark.parametrize("kind", ["outside", "double", "autocast"])
def test_elsewhere_nothing_is_packed(kind, monkeypatch):
    module, x = layer_and_field("convolution")
    monkeypatch.setattr(packed.WeightCache, "get", lambda *_: pytest.fail("packed"))
    with torch.inference_mode():
        if kind == "outside":
            module(x)
        with cached_weights(3):
            if kind == "double":
                module.double()(x.double())
            if kind == "autocast":
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    module(x)


@needs_onednn
@pytest.mark.parametrize("name", ["predrnn:debug", "cms-lstm:debug", "convlstm:debug"])
def test_new_weights_count_in_the_next_forecast(name):
    model, past = build(name, in_steps=3, out_steps=2).eval(), frames(1, 3, 1, 32, 32)
    with torch.inference_mode():
        first = model(past)
        for weight in model.parameters():
            weight.mul_(0.5)
        assert not torch.allclose(model(past), first)
