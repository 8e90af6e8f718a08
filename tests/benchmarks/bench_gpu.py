"""Training throughput of the networks on a GPU: float32, bf16, and bf16 compiled.

    python -m tests.benchmarks.bench_gpu                      # all networks in their published sizes, one call
    python -m tests.benchmarks.bench_gpu predrnn:published gs2pm:small --batch 32

A step is forward, backward and Adam on ``batch`` sequences of 10 + 10 frames of 64 x 64 pixels, for GS2PM of 128 x 128
and of its prediction branch. bf16 is channels-last and with a fused optimiser; figures appear as they are measured,
since a compiler may need minutes. The share of the peak is that of large bf16 matrix products on the same card, at
three times the operations of a forecast per sequence. A network that fails is named, and the rest goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from nowcast.benchmark.costs import macs
from nowcast.core.machine import device_name
from nowcast.models import Nowcaster, build
from nowcast.registry.checkpoint import fast_layout
from tests.benchmarks.bench_models import CASES

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WARM, ROUNDS, STEPS = 3, 10, 10
NAMES = ["gs2pm:small", "gs2pm:medium", *(case.model for case in CASES if case.channels == 1)]
PEAK_SIDE = 8192 if DEVICE == "cuda" else 1024


def rate(job: Callable[[], object]) -> float:
    """Calls per second, after a few that do not count."""
    for _ in range(WARM):
        job()
    wait()
    start = time.perf_counter()
    for _ in range(ROUNDS):
        job()
    wait()
    return ROUNDS / (time.perf_counter() - start)


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak() -> float:
    """Operations per second of a product of large bf16 matrices."""
    left, right = torch.randn(2, PEAK_SIDE, PEAK_SIDE, device=DEVICE, dtype=torch.bfloat16)
    return 2 * PEAK_SIDE**3 * rate(lambda: left @ right)


def side_of(name: str) -> int:
    return 128 if name.startswith("gs2pm") else 64


def training(name: str, batch: int, *, half: bool = False, compiled: bool = False) -> tuple[float, Nowcaster]:
    """Sequences per second."""
    torch.manual_seed(0)
    network = build(name, in_steps=STEPS, out_steps=STEPS).to(DEVICE).train()
    if name.startswith("gs2pm"):
        network.tune("full")
    if half:
        network = fast_layout(network)
    past, future = torch.rand(2, batch, STEPS, 1, side_of(name), side_of(name), device=DEVICE)
    loss_of = torch.compile(network.training_loss) if compiled else network.training_loss
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-5, fused=half)

    def step() -> Tensor:
        optimiser.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
            loss = loss_of(past, future, 0.3)
        loss.backward()
        optimiser.step()
        return loss

    return batch * rate(step), network


def row(name: str, batch: int, highest: float) -> None:
    plain, network = training(name, batch)
    print(f"{plain:10.1f}", end="", flush=True)
    print(f"{training(name, batch, half=True)[0]:10.1f}", end="", flush=True)
    fast, _ = training(name, batch, half=True, compiled=True)
    operations = 3 * 2 * macs(network.eval(), (1, STEPS, 1, side_of(name), side_of(name))) * fast
    print(f"{fast:10.1f}{fast / plain:8.2f}{operations / highest:9.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    highest = peak()
    print(
        f"{device_name(DEVICE)}, torch {torch.__version__}, bf16 peak {highest / 1e12:.1f} TFLOP/s, "
        f"batch {arguments.batch}"
    )
    print(f"{'sequences per second':28}{'fp32':>10}{'bf16':>10}{'compiled':>10}{'ratio':>8}{'of peak':>9}")
    for name in arguments.names:
        print(f"{name:28}", end="", flush=True)
        try:
            row(name, arguments.batch, highest)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            print(f" {type(error).__name__}: {str(error).partition(chr(10))[0][:80]}", flush=True)


if __name__ == "__main__":
    main()
