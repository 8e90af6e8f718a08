"""What a network costs: parameters, multiplications per forecast, and on which machine."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from models import Nowcaster


def parameters(network: Nowcaster) -> int:
    """Weights that training changes."""
    return sum(weight.numel() for weight in network.parameters())


def macs(network: Nowcaster, past_shape: Sequence[int]) -> int:
    """Multiply-accumulate operations of one forecast: convolutions, matrix products and attention.

    Nothing is computed: shapes alone go through the network, so size and device cost nothing. What
    merely adds, compares or moves values is not counted, as in most papers; nor are Fourier transforms.

    Args:
        network: Any network of the table, on any device.
        past_shape: (batch, time, channel, height, width) of what goes in.
    """
    nothing = torch.empty(tuple(past_shape), device="meta")
    tensors: dict[str, torch.Tensor] = {name: tensor.to("meta") for name, tensor in network.named_buffers()}
    for name, weight in network.named_parameters():
        tensors[name] = nn.Parameter(weight.detach().to("meta"), requires_grad=False)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        functional_call(network, tensors, (nothing,))
    return counter.get_total_flops() // 2


def device_name(device: str | torch.device) -> str:
    """The GPU, or the processor and how many threads of it torch uses."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # Python itself knows the architecture alone
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{torch.get_num_threads()} threads of {names[0] if names else platform.machine()}"
