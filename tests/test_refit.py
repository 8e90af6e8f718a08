"""The linear part of a trained network is fitted exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from nowcast import checkpoint, refit
from nowcast.config import Recipe
from nowcast.train import train
from tests import synthetic


def recipe(tmp_path: Path, model: str, **options: object) -> Recipe:
    store = tmp_path / "frames"
    if not store.exists():
        synthetic.make_store(store, range(24))
    return Recipe.model_validate({
        "name": model.partition(":")[0], "model": model, "options": options, "runs": tmp_path / "runs",
        "train": [{"store": str(store), "end": "2010-08-26T01:00Z"}],
        "valid": [{"store": str(store), "start": "2010-08-26T01:00Z"}],
        "windows": {"quantity": "rainfall_rate", "in_steps": 2, "out_steps": 2, "crop": 32},
        "trainer": {"epochs": 1, "batches_per_epoch": 2, "batch_size": 2, "valid_batches": 1, "workers": 0,
                    "accelerator": "cpu"},
    })  # fmt: skip


def test_a_regression_finds_the_weights_that_made_the_events() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.cat([torch.randn(40_000, 2, generator=generator), torch.full((40_000, 1), 10.0)], dim=1)
    true, offset = torch.tensor([1.5, -0.7, -0.1]), 0.5 * torch.randn(40_000, generator=generator)
    event = (torch.rand(40_000, generator=generator) < (seen @ true + offset).sigmoid()).float()
    found = refit._regression(seen, offset, event, torch.zeros(3))
    torch.testing.assert_close(found, true, rtol=0.05, atol=0.02)


def test_a_refit_checkpoint_fits_better_and_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "EVENTS", 200)
    asked = recipe(tmp_path, "lagrangian:debug", levels=[0.1, 0.5, 0.999], importance=[1, 1, 1])
    train(asked)
    before = tmp_path / "runs/lagrangian/last.safetensors"
    after = refit.refit(before, tmp_path / "refit.safetensors")

    def cost(path: Path, level: int) -> float:
        network = checkpoint.load(path).network
        seen, offset, truth = next(iter(refit._drawn(network, asked)))
        logits = seen @ network.linear.weight[level, :, 0, 0] + offset[:, level]
        event = (truth >= network.levels[level]).float()
        return functional.binary_cross_entropy_with_logits(logits, event).item()

    assert cost(after, 0) < cost(before, 0)
    assert cost(after, 2) == cost(before, 2)  # hardly anything reaches that level
    facts = checkpoint.read_card(after).training
    assert facts["refit_of"] == checkpoint.file_digest(before)
    assert 2 <= facts["refit_maps"] < 6


def test_another_network_is_refused(tmp_path: Path) -> None:
    train(recipe(tmp_path, "unet:debug"))
    with pytest.raises(ValueError, match="only lagrangian has a linear part to fit"):
        refit.refit(tmp_path / "runs/unet/last.safetensors", tmp_path / "refit.safetensors")
