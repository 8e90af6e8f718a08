"""The first ten steps of the optimiser of every network are the recorded ones.

The curves of these networks agreed with those of the official codes when the numbers were recorded, so a change of
them is a change of the training: of the network, its loss, what it is fed, its optimiser, its schedule. Weights, clips
and draws are given; sums are in double precision, since several of the networks are chaotic in single.

    python -m tests.training.test_steps cms-lstm    # records a case: a new one, or one that changes on purpose
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from nowcast.config import TrainerSettings
from nowcast.models import MODELS, build, loss, model_class
from nowcast.models.nowcaster import Nowcaster
from nowcast.training.run import Learner
from tests.parity_pack import drawn

RECORD = Path(__file__).with_name("steps.json")
STEPS, PLANNED = 10, 20
"""Steps made, and steps that schedules are laid out over: half of a training is seen."""
TOLERANCE = 1e-6
SINGLE = {"predrnn-v2", "trajgru", "lagrangian"}
"""Networks that compute a part in single precision whatever the rest is."""
Steps = dict[str, Any]


class Case(NamedTuple):
    """A network, tiny, and how it is trained: as its paper does, with less of everything."""

    model: str
    trainer: dict[str, Any]
    options: Mapping[str, Any] = MappingProxyType({})
    tuning: str | None = None
    loss: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    """Losses that are added up in place of the network's own, and their options."""


def adam(rate: float, **more: Any) -> dict[str, Any]:
    return {"learning_rate": rate, "schedule": "constant"} | more


def cycle(rate: float) -> dict[str, Any]:
    return {"learning_rate": rate, "schedule": "one-cycle"}


CASES = {
    "convlstm": Case("convlstm:debug", adam(1e-4, schedule="plateau", clip_value=10)),
    "convgru": Case("convgru:debug", adam(1e-4, schedule="plateau", clip_value=10)),
    "cms-lstm": Case(
        "cms-lstm:debug", {"optimiser": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01, "schedule": "cosine"}
    ),
    "cms-lstm, summed": Case(
        "cms-lstm:debug", adam(1e-3, optimiser="adamw", weight_decay=0.01), loss={"mse": {"reduction": "sum"}}
    ),
    "swinlstm-b": Case("swinlstm-b:debug", adam(1e-4)),
    "swinlstm-d": Case("swinlstm-d:debug", adam(1e-4)),
    "lmc-memory": Case("lmc-memory:debug", adam(2e-4), {"long_steps": 5}),
    "e3d-lstm": Case("e3d-lstm:debug", adam(1e-3, betas=[0.95, 0.9995])),
    "e3d-lstm, summed": Case(
        "e3d-lstm:debug",
        adam(1e-3, betas=[0.95, 0.9995]),
        {"stale_memory": True},
        loss={"mse": {"reduction": "sum"}, "mae": {"reduction": "sum"}},
    ),
    "gs2pm": Case("gs2pm:debug", adam(1e-4), {"one_mask": True}),
    "gs2pm, prompt": Case("gs2pm:debug", adam(1e-4), tuning="prompt"),
    "gs2pm, full": Case("gs2pm:debug", adam(1e-4), tuning="full"),
    "predrnn": Case("predrnn:debug", adam(3e-4), {"reverse_input": True}),
    "predrnn-v2": Case("predrnn-v2:debug", adam(1e-4), {"reverse_input": True, "decoupling": 0.1}),
    "predrnn-v2, KTH": Case(
        "predrnn-v2:debug",
        adam(1e-4),
        {
            "reverse_input": True,
            "decoupling": 0.01,
            "sampling": {"kind": "reverse", "iterations": 80_000, "r_sampling_step_1": 5_000, "r_exp_alpha": 2_000},
        },
    ),
    "predrnn-pp": Case("predrnn-pp:debug", cycle(1e-4)),
    "mim": Case("mim:debug", cycle(5e-4)),
    "motionrnn": Case("motionrnn:debug", adam(3e-4)),
    "convlstm-stacked": Case("convlstm-stacked:debug", cycle(5e-4)),
    "sa-convlstm": Case("sa-convlstm:debug", adam(1e-3, clip_norm=1)),
    "sa-convlstm-seq": Case("sa-convlstm-seq:debug", adam(1e-4)),
    "simvp": Case("simvp:debug", cycle(1e-3)),
    "tau": Case("tau:debug", cycle(1e-3), {"divergence": 0.1}),
    "phydnet": Case("phydnet:debug", cycle(1e-3)),
    "mau": Case("mau:debug", cycle(1e-3)),
    "trajgru": Case("trajgru:debug", adam(1e-4, betas=[0.5, 0.999], clip_norm=50)),
    "unet": Case("unet:debug", adam(1e-3, schedule="plateau")),
    "smaat-unet": Case("smaat-unet:debug", adam(1e-3, schedule="plateau")),
    "earthformer": Case("earthformer:debug", adam(1e-3, optimiser="adamw", schedule="cosine", warm_up=0.2)),
    "lagrangian": Case("lagrangian:debug", adam(1e-3)),
}


def steps(case: Case, *, count: int = STEPS, dtype: torch.dtype = torch.float64) -> Steps:
    """Train for some steps, and tell what could be seen of each and what became of the weights."""
    network, past, future = _network(case).to(dtype), *(part.to(dtype) for part in _clips().split(3, dim=1))
    draws = _watched(network)
    settings = TrainerSettings.model_validate({"epochs": 1, **case.trainer})
    learner = Learner(network, settings, range(PLANNED), None, train=None, valid=None)  # type: ignore[arg-type]
    kit = learner.configure_optimizers()
    optimiser, schedule = kit["optimizer"], kit["lr_scheduler"]["scheduler"]
    seen: list[Steps] = []
    for step in range(count):
        torch.manual_seed(step)
        error = network.training_loss(past, future, learner.done(step), torch.ones_like(future))
        optimiser.zero_grad()
        error.backward()
        seen.append(
            {
                "loss": error.item(),
                "rate": optimiser.param_groups[0]["lr"],
                "gradient": {name: float(norm) for name, norm in _norms(network, "grad").items()},
                "draws": [draws.pop(0) for _ in tuple(draws)],
                "generator": float(torch.rand(())),
            }
        )
        _clip(network, settings)
        optimiser.step()
        schedule.step(*([1.0] if settings.schedule == "plateau" else []))
    weights = {name: [float(norm), _digest(network, name)] for name, norm in _norms(network).items()}
    return {"steps": seen, "weights": weights}


def _network(case: Case) -> Nowcaster:
    """A tiny network with given weights, in training."""
    network = build(case.model, in_steps=3, out_steps=3, **case.options).train()
    shapes = {name: tuple(weight.shape) for name, weight in network.named_parameters()}
    network.load_state_dict(network.state_dict() | drawn(shapes, 1, 0.5))
    if parts := [loss(name, **options) for name, options in case.loss.items()]:
        network.loss = lambda made, truth, weight=None: torch.stack([part(made, truth, weight) for part in parts]).sum()
    if case.tuning:
        network.tune(case.tuning)
        network.train()
    return network


def _clips() -> Tensor:
    """Two clips of six frames of 32 x 32 with a blob that moves, BTCHW."""
    place = torch.arange(32.0)
    clips = []
    for start, way in ((8, 2), (20, -1.5)):
        rows, columns = (
            (-0.05 * (place - start - speed * torch.arange(6.0)[:, None]) ** 2).exp() for speed in (way, 1)
        )
        clips.append((rows[:, :, None] * columns[:, None, :]).unsqueeze(1))
    return torch.stack(clips)


def _watched(network: Nowcaster) -> list[list[float]]:
    """What the network draws in a step, appended as it does: frames that are fed, cells that are masked."""
    found: list[list[float]] = []
    for name in ("fed", "seen"):
        if draw := getattr(network, name, None):

            def watching(*arguments: Any, draw: Any = draw) -> Any:
                made: Any = draw(*arguments)
                if isinstance(made, Tensor):
                    flat = made.flatten().double()
                    found.append([float(flat.sum()), float((flat * torch.arange(len(flat))).sum())])
                return made

            setattr(network, name, watching)
    return found


def _norms(network: Nowcaster, of: str = "data") -> dict[str, Tensor]:
    """Norm of the gradients, or of the weights, of every part of the network that learns."""
    parts: dict[str, list[Tensor]] = {}
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            parts.setdefault(name.partition(".")[0], []).append(getattr(weight, of))
    return {part: torch.stack([one.norm() for one in tensors]).norm() for part, tensors in parts.items()}


def _digest(network: Nowcaster, part: str) -> float:
    """A number that tells when weights of a part exchange their places."""
    total = 0.0
    for name, weight in network.named_parameters():
        if name.partition(".")[0] == part and weight.requires_grad:
            flat = weight.detach().reshape(-1).double()
            total += float((flat * (torch.arange(len(flat)) + len(name)).double().cos()).sum())
    return total


def _clip(network: Nowcaster, settings: TrainerSettings) -> None:
    learning = [weight for weight in network.parameters() if weight.requires_grad]
    if settings.clip_value:
        torch.nn.utils.clip_grad_value_(learning, settings.clip_value)
    if settings.clip_norm:
        torch.nn.utils.clip_grad_norm_(learning, settings.clip_norm)


def _recorded() -> dict[str, Steps]:
    found: dict[str, Steps] = json.loads(RECORD.read_text())
    return found


def _differences(made: Any, want: Any, tolerance: float, place: str = "") -> list[str]:
    """Numbers that are not the recorded ones, with their places."""
    if isinstance(want, dict | list):
        keys = list(want) if isinstance(want, dict) else range(len(want))
        if (set(made) != set(want)) if isinstance(want, dict) else (len(made) != len(want)):
            return [f"{place}: {made} instead of {want}"]
        return [fault for key in keys for fault in _differences(made[key], want[key], tolerance, f"{place}/{key}")]
    return [] if made == pytest.approx(want, rel=tolerance, abs=1e-9) else [f"{place}: {made} instead of {want}"]


@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_recorded_ones(name: str) -> None:
    tolerance = 1e-3 if CASES[name].model.partition(":")[0] in SINGLE else TOLERANCE
    assert _differences(steps(CASES[name]), _recorded()[name], tolerance) == []


@pytest.mark.parametrize("name", CASES)
def test_the_first_step_in_single_precision_is_near(name: str) -> None:
    """The code that runs in practice has paths of its own: packed weights, other convolutions, portions."""
    made, want = steps(CASES[name], count=1, dtype=torch.float32)["steps"][0], _recorded()[name]["steps"][0]
    assert _differences(made["loss"], want["loss"], 1e-4) == []
    assert _differences(made["gradient"], want["gradient"], 1e-2) == []


def test_every_network_that_learns_is_recorded() -> None:
    assert set(CASES) == set(_recorded())
    assert {case.model.partition(":")[0] for case in CASES.values()} == {
        name for name in MODELS if model_class(name).trainable
    }


def test_another_training_is_noticed() -> None:
    case = CASES["predrnn"]
    other = case._replace(trainer=case.trainer | {"betas": [0.9, 0.99]})
    assert any("/weights/" in fault for fault in _differences(steps(other), _recorded()["predrnn"], TOLERANCE))


if __name__ == "__main__":
    record = _recorded() | {name: steps(CASES[name]) for name in sys.argv[1:]}
    lines = (f"{json.dumps(name)}: {json.dumps(record[name])}" for name in CASES if name in record)
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")
