"""The cost of a network, against hand-counted operations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nowcast.benchmark.costs import macs, parameters
from nowcast.models import MODELS, Nowcaster, build, model_class


class OneConvolution(Nowcaster):
    def __init__(self) -> None:
        super().__init__(in_steps=2, out_steps=1)
        self.layer = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, past_BTCHW: torch.Tensor) -> torch.Tensor:
        return self.layer(past_BTCHW[:, :, 0])[:, None]


def test_a_convolution_is_counted_by_hand() -> None:
    network = OneConvolution()
    assert parameters(network) == 2 * 9 + 1
    assert macs(network, (1, 2, 1, 8, 10)) == 2 * 9 * 8 * 10
    assert network.layer.weight.device.type == "cpu", "the network itself stays as it was"


@pytest.mark.parametrize("name", [name for name in MODELS if model_class(name).trainable])
def test_every_network_is_counted_and_a_batch_costs_its_samples(name: str) -> None:
    network = build(f"{name}:debug" if "debug" in model_class(name).SIZES else name, in_steps=3, out_steps=2)
    one, two = (macs(network, (batch, 3, 1, 32, 32)) for batch in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.01) and one > 0
