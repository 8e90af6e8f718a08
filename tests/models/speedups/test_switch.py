"""The plain path computes the same as the speed-ups, and is taken where they are off or torch is another."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from nowcast.models import speedups
from nowcast.models.speedups import winograd
from tests.models.test_models import each_trainable_model, frames, smallest

WINOGRAD = {
    *("convlstm", "convgru", "convlstm-stacked", "e3d-lstm", "predrnn", "predrnn-v2", "predrnn-pp", "mim"),
    *("motionrnn", "phydnet", "mau", "lmc-memory"),
}
PACKED = WINOGRAD | {"cms-lstm", "sa-convlstm"}


@pytest.fixture
def used(monkeypatch) -> set[str]:
    """Speed-ups that were used, in networks however small."""
    names: set[str] = set()
    enabled = speedups.enabled

    def recorded(name: str) -> bool:
        if answer := enabled(name):
            names.add(name)
        return answer

    monkeypatch.setattr(speedups, "enabled", recorded)
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "LEAST_PIXELS", 1)
    monkeypatch.setattr(winograd, "LEAST_PIXELS_TRAINING", 1)
    return names


@each_trainable_model
def test_forecast_equals_the_plain_one(name, used):
    model, past = smallest(name), frames(2, 3, 1, 32, 24)
    with torch.inference_mode():
        with speedups.disabled():
            plain = model(past)
        assert used == set()
        torch.testing.assert_close(model(past), plain, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert used == {key for key, users in (("winograd", WINOGRAD), ("packed", PACKED)) if name in users}


@each_trainable_model
def test_training_equals_the_plain_one(name, used):
    model, past, future = smallest(name).train(), frames(2, 3, 1, 32, 24), frames(2, 2, 1, 32, 24)

    def step() -> list[torch.Tensor]:
        torch.manual_seed(3)
        loss = model.training_loss(past, future, 0.4)
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    with speedups.disabled():
        plain = step()
    assert used == set()
    torch.testing.assert_close(step(), plain, rtol=1e-3, atol=1e-5)
    assert used == ({"winograd"} if name in WINOGRAD else set())


def test_prompt_tuning_equals_the_plain_one(used):
    model, past, future = smallest("gs2pm").train(), frames(2, 3, 1, 32, 24), frames(2, 2, 1, 32, 24)
    model.tune("prompt")
    prompt = [weight for weight in model.parameters() if weight.requires_grad]

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(3)
        return list(torch.autograd.grad(model.training_loss(past, future, 0.4), prompt))

    with speedups.disabled():
        plain = gradients()
    assert used == set()
    torch.testing.assert_close(gradients(), plain, rtol=1e-3, atol=1e-6)
    assert used == {"frozen"}


@pytest.mark.parametrize("name", speedups.OPERATORS)
def test_the_installed_torch_is_supported(name):
    assert speedups.enabled(name)


@pytest.mark.parametrize("name", speedups.OPERATORS)
@pytest.mark.parametrize("reason", ["variable", "version", "operator", "context"])
def test_where_the_plain_path_is_taken(name, reason, monkeypatch):
    if reason == "variable":
        monkeypatch.setenv("NOWCAST_SPEEDUPS", "0")
    if reason == "version":
        monkeypatch.setattr(torch, "__version__", "2.99.0+cpu")
    if reason == "operator":
        monkeypatch.setitem(speedups.OPERATORS, name, (*speedups.OPERATORS[name], "aten.no_such_operator"))
    with speedups.disabled() if reason == "context" else nullcontext():
        assert not speedups.enabled(name)
    if reason == "context":
        assert speedups.enabled(name)


def test_another_torch_forecasts_by_the_plain_path(used, monkeypatch):
    model, past = smallest("predrnn"), frames(2, 3, 1, 32, 24)
    with torch.inference_mode():
        with speedups.disabled():
            plain = model(past)
        monkeypatch.setattr(torch, "__version__", "2.99.0")
        torch.testing.assert_close(model(past), plain, rtol=0, atol=0)
    assert used == set()
