"""What a network costs: parameters, and multiplications per forecast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from nowcast.models import Nowcaster


def parameters(network: Nowcaster) -> int:
    """Count the parameters of a network."""
    return sum(weight.numel() for weight in network.parameters())


def macs(network: Nowcaster, past_shape: Sequence[int]) -> int:
    """Count the multiply-accumulate operations of one forecast: convolutions, matrix products and attention.

    Nothing is computed: the network runs on the meta device, so neither its size nor its device matters. What
    merely adds, compares or moves values is not counted, as in most papers; nor are Fourier transforms.

    Args:
        network: Any network of the table, on any device.
        past_shape: Shape (batch, time, channel, height, width) of the input.
    """
    nothing = torch.empty(tuple(past_shape), device="meta")
    tensors: dict[str, torch.Tensor] = {name: tensor.to("meta") for name, tensor in network.named_buffers()}
    for name, weight in network.named_parameters():
        tensors[name] = nn.Parameter(weight.detach().to("meta"), requires_grad=False)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        functional_call(network, tensors, (nothing,))
    return int(counter.get_total_flops()) // 2
