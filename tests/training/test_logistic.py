"""The linear part of a network is fitted exactly, before the rest is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from nowcast.config import Recipe
from nowcast.models.lagrangian import Lagrangian
from nowcast.registry import checkpoint
from nowcast.training import logistic
from nowcast.training.run import train, untrained
from tests import synthetic


def recipe(tmp_path: Path, model: str, **options: object) -> Recipe:
    store = tmp_path / "frames"
    if not store.exists():
        synthetic.make_store(store, range(24))
    return Recipe.model_validate(
        {
            "name": model.partition(":")[0],
            "model": model,
            "options": options,
            "runs": tmp_path / "runs",
            "train": [{"store": str(store), "end": "2010-08-26T01:00Z"}],
            "valid": [{"store": str(store), "start": "2010-08-26T01:00Z"}],
            "windows": {"quantity": "rainfall_rate", "in_steps": 2, "out_steps": 2, "crop": 32},
            "trainer": {
                "epochs": 1,
                "batches_per_epoch": 2,
                "batch_size": 2,
                "valid_batches": 1,
                "workers": 0,
                "accelerator": "cpu",
            },
        }
    )


def test_a_regression_finds_the_weights_that_made_the_events() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.cat([torch.randn(40_000, 2, generator=generator), torch.full((40_000, 1), 10.0)], dim=1)
    true = torch.tensor([1.5, -0.7, -0.1])
    event = (torch.rand(40_000, generator=generator) < (seen @ true).sigmoid()).float()
    torch.testing.assert_close(
        logistic._regression(seen, event, torch.ones(40_000), torch.zeros(3)), true, rtol=0.05, atol=0.02
    )


def test_a_fitted_network_fits_better_than_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "EVENTS", 200)
    asked = recipe(tmp_path, "lagrangian:debug", levels=[0.1, 0.5, 0.999], importance=[1, 1, 1])
    before = untrained(asked)[0]
    after = checkpoint.load(logistic.fit(asked, tmp_path / "linear.safetensors")).network

    def cost(network: Lagrangian, level: int) -> float:
        seen, truth, _ = next(iter(logistic._samples(network, asked)))
        logits = seen @ network.linear.weight[level, :, 0, 0]
        event = (truth >= network.levels[level]).float()
        return functional.binary_cross_entropy_with_logits(logits, event).item()

    assert cost(after, 0) < cost(before, 0)
    # Hardly anything reaches the last level: it changed as the one below it did.
    new, old = (network.linear.weight.data[..., 0, 0] for network in (after, before))
    torch.testing.assert_close(new[2] - old[2], new[1] - old[1])
    assert 2 <= checkpoint.read_card(tmp_path / "linear.safetensors").training["linear_maps"] < 6


def test_training_goes_on_from_there(tmp_path: Path) -> None:
    """The U-Net is silent at first, so the first forecast is that of the linear part."""
    asked = recipe(tmp_path, "lagrangian:debug")
    begun = logistic.fit(asked, tmp_path / "linear.safetensors")
    past = torch.rand(1, 2, 1, 40, 40)
    fitted, again = checkpoint.load(begun).network, asked.model_copy(update={"start_from": str(begun)})
    started, _ = untrained(again)
    torch.testing.assert_close(started.exceedance(past)[0], fitted.exceedance(past)[0])
    train(again)
    best = checkpoint.load(tmp_path / "runs/lagrangian/last.safetensors").network
    assert not torch.equal(best.unet.head, fitted.unet.head)


def test_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only lagrangian has a linear part to fit"):
        logistic.fit(recipe(tmp_path, "unet:debug"), tmp_path / "linear.safetensors")
