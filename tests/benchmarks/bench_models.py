"""Cost of the networks beside that of the official codes: CPU seconds of all threads, and peak memory.

    pytest -o addopts= -s tests/benchmarks/bench_models.py           # all of them, an hour
    python -m tests.benchmarks.bench_models predrnn convgru          # some of them

Every network runs in a process of its own at the setting that the official figure was measured at: mostly 64 x 64
pixels, ten frames in and ten out, a forecast of one sequence, and a training step (forward, backward, Adam) of
``batch`` of them. Memory is the most that the process held in the training step. Official figures are from
another 2-core machine, so ratios tell more than either column; those of CPU seconds are steadier than of time.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field

import numpy as np
import pytest
import torch

from nowcast.models import MODELS, build

REPEATS = 3
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Case:
    """A size of a network, and what its official code costs: CPU seconds, and GiB where they were measured."""

    model: str
    forward: float
    train: float
    memory: float | None = None
    batch: int = 4
    forward_batch: int = 1
    channels: int = 1
    side: int = 64
    """Of the frames, pixels."""
    options: dict[str, object] = field(default_factory=dict)
    """Of the network."""
    tuning: str | None = None
    """How trained weights are fitted to other data; None: a training from the beginning."""
    half: bool = False
    """Trained in bfloat16, as by ``trainer.precision=bf16-mixed``; the official figure is of single precision."""
    seed: bool = False
    """Counts in the mean of the networks that the project began with."""


CASES = [
    Case("convlstm:published", 2.1, 26.5, 2.5, seed=True),
    Case("convgru:published", 1.7, 21.1, 2.5, seed=True),
    Case("e3d-lstm:published", 8.3, 26.8, 3.8, batch=2, forward_batch=2, seed=True),
    Case("cms-lstm:filter-3", 1.23, 14.9, 3.1, seed=True),
    Case("cms-lstm:filter-5", 1.47, 18.1, 3.1, seed=True),
    Case("swinlstm-b:published", 1.9, 38.7, 13.9, seed=True),
    Case("swinlstm-d:published", 2.3, 29.5, 9.7, seed=True),
    Case("lmc-memory:published", 0.87, 19.2, 2.0, seed=True),
    Case("convlstm-stacked:openstl-s", 1.10, 11.61),
    Case("predrnn:published", 2.14, 24.08),
    Case("predrnn-v2:published", 2.52, 25.13),
    Case("predrnn-pp:openstl", 3.33, 35.07),
    Case("mim:openstl", 3.42, 37.38),
    Case("phydnet:published", 0.42, 4.30),
    Case("mau:published", 0.44, 4.76),
    Case("simvp:incepu", 0.45, 5.45),
    Case("simvp:gsta", 0.45, 6.02),
    Case("tau:published", 0.44, 6.08),
    Case("simvp:convnext", 0.39, 4.89),
    Case("simvp:poolformer", 0.38, 5.04),
    Case("simvp:convmixer", 0.15, 2.81),
    Case("simvp:van", 0.44, 5.93),
    Case("simvp:moga", 0.48, 6.31),
    Case("simvp:swin", 0.46, 5.54),
    Case("simvp:uniformer", 0.43, 5.72),
    Case("simvp:hornet", 0.44, 6.09),
    Case("simvp:mlp-mixer", 0.40, 5.03),
    Case("simvp:vit", 0.44, 5.73),
    Case("gs2pm:small", 1.5, 38, 8.1, batch=8, channels=3, side=128, tuning="full"),
    Case("gs2pm:small", 1.5, 56, 12.0, batch=8, channels=3, side=128),
    Case("gs2pm:small", 1.5, 27, 7.6, batch=8, channels=3, side=128, tuning="prompt"),
    Case("gs2pm:small", 1.5, 27, 7.6, batch=8, channels=3, side=128, tuning="prompt", half=True),
]


def measure(case: Case) -> dict[str, float]:
    """Runs one case in this process."""
    torch.manual_seed(0)
    model = build(case.model, in_steps=10, out_steps=10, channels=case.channels, **case.options)
    for weight in model.parameters():  # as nowcast.registry.checkpoint does, whose import would count as memory
        if weight.ndim in LAYOUTS:
            weight.data = weight.data.contiguous(memory_format=LAYOUTS[weight.ndim])
    if case.tuning:
        model.tune(case.tuning)
    past, future = torch.rand(2, max(case.batch, case.forward_batch), 10, case.channels, case.side, case.side)
    model.eval()
    with torch.inference_mode():
        forward = least(lambda: model(past[: case.forward_batch]))
    model.train()
    optimiser = torch.optim.Adam((weight for weight in model.parameters() if weight.requires_grad), lr=1e-5)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=case.half):
            loss = model.training_loss(past[: case.batch], future[: case.batch], 0.3)
        loss.backward()
        optimiser.step()

    train = least(step)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"forward": forward, "train": train, "memory": peak}


def least(job: object) -> float:
    """CPU seconds of all threads, the least of a few runs."""
    spent = []
    for _ in range(REPEATS):
        start = time.process_time()
        job()  # type: ignore[operator]
        spent.append(time.process_time() - start)
    return min(spent)


def apart(case: Case) -> dict[str, float]:
    """Runs one case in a new process, with both cores and threads that do not spin while they wait."""
    code = (
        f"import json; from tests.benchmarks.bench_models import *; print(json.dumps(measure(Case(**{asdict(case)}))))"
    )
    settings = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    command = ["env", *(f"{key}={value}" for key, value in settings.items()), sys.executable, "-c", code]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(cases: list[Case]) -> None:
    """Measures and prints, line by line, and then the geometric means."""
    print(f"\ntorch {torch.__version__}, 2 threads; ours, and the ratio to the official code")
    print(f"{'network':28} {'forward s':>16} {'train step s':>18} {'memory GiB':>16}")
    ratios: list[tuple[Case, dict[str, float]]] = []
    for case in cases:
        ours = apart(case)
        official = {key: value for key, value in asdict(case).items() if key in ours and value}
        ratios.append((case, {key: ours[key] / official[key] for key in official}))
        cells = [f"{ours[key]:8.2f} {ratios[-1][1].get(key, float('nan')):6.2f}" for key in ours]
        label = " ".join((case.model, *map(str, case.options.values()), case.tuning or "", "bf16" if case.half else ""))
        print(f"{label:28} " + "   ".join(cells), flush=True)
    for name, chosen in (("all", ratios), ("seeds", [one for one in ratios if one[0].seed])):
        means = {
            key: np.exp(np.mean([np.log(ratio[key]) for _, ratio in chosen if key in ratio]))
            for key in ("forward", "train", "memory")
            if any(key in ratio for _, ratio in chosen)
        }
        print(f"geometric mean of {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in means.items()))


def chosen(names: list[str]) -> list[Case]:
    """Cases of networks, by name with or without size; all that are in the registry if none is named."""
    known = [case for case in CASES if case.model.partition(":")[0] in MODELS]
    return [case for case in known if not names or {case.model, case.model.partition(":")[0]} & set(names)]


def test_networks(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        table(chosen([]))


if __name__ == "__main__":
    table(chosen(sys.argv[1:]))
