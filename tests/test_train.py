"""Training: a debug recipe learns, resumes, exports; mistakes in the data are refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from models import MODELS, model_class
from nowcast import checkpoint, train
from nowcast.config import ConfigError, Recipe
from tests import synthetic

TRAINABLE = [name for name in MODELS if model_class(name).trainable]
SMALL = {"first_width": 4, "widths": [32, 32, 32], "kernel": 3, "strides": [2, 2, 2]}


def recipe(tmp_path: Path, model: str = "convgru", **trainer: object) -> Recipe:
    path = str(tmp_path / "frames")
    if not Path(path).exists():
        synthetic.make_store(tmp_path / "frames", range(24))
    return Recipe.model_validate({
        "name": "debug", "model": model, "options": SMALL, "runs": tmp_path / "runs",
        "train": [{"store": path, "end": "2010-08-26T01:00Z"}],
        "valid": [{"store": path, "start": "2010-08-26T01:00Z"}],
        "windows": {"quantity": "rainfall_rate", "in_steps": 2, "out_steps": 2, "crop": 32, "crops_per_window": 2},
        "trainer": {"epochs": 1, "batch_size": 2, "batches_per_epoch": 3, "valid_batches": 2, "workers": 0,
                    "accelerator": "cpu", "learning_rate": 1e-3, "clip_norm": 1.0, **trainer},
    })  # fmt: skip


def losses(tmp_path: Path, column: str = "valid_loss") -> list[float]:
    files = sorted((tmp_path / "runs/debug/csv").glob("version_*/metrics.csv"))
    return [
        float(row[column]) for path in files for row in csv.DictReader(path.read_text().splitlines()) if row[column]
    ]


@pytest.mark.parametrize("model", TRAINABLE)
def test_every_network_trains_and_its_export_forecasts(tmp_path: Path, model: str) -> None:
    path = train.train(recipe(tmp_path, model))
    card = checkpoint.read_card(path)
    assert card.model == model
    assert card.training["steps"] == 3
    assert card.data[0]["frames"] == 12
    assert card.data[0]["title"] == "synthetic rain"
    assert card.cadence_seconds == 300
    assert {"last.ckpt", "best.safetensors", "last.safetensors", "recipe.yaml"} <= {
        item.name for item in path.parent.iterdir()
    }


def test_the_loss_falls_and_a_run_resumes(tmp_path: Path) -> None:
    train.train(recipe(tmp_path, epochs=2, batches_per_epoch=12))
    train.train(recipe(tmp_path, epochs=4, batches_per_epoch=12))
    assert checkpoint.read_card(tmp_path / "runs/debug/last.safetensors").training["epochs"] == 4
    found = losses(tmp_path)
    assert len(found) == 4
    assert found[-1] < 0.7 * found[0]


def test_the_last_weights_are_kept_even_if_they_are_not_better(tmp_path: Path) -> None:
    train.train(recipe(tmp_path, epochs=3, learning_rate=3.0))
    best, last = (
        checkpoint.read_card(tmp_path / f"runs/debug/{name}.safetensors").training for name in ("best", "last")
    )
    assert last["epochs"] == 3
    assert best["epochs"] < 3


def test_rain_can_weigh_more_than_dry_pixels(tmp_path: Path) -> None:
    even, wet = (train.train(recipe(tmp_path, wet_weight=weight), resume=False) for weight in (0.0, 9.0))
    assert checkpoint.read_card(wet).recipe["trainer"]["wet_weight"] == 9.0
    assert losses(tmp_path)[1] > losses(tmp_path)[0], "an error in rain costs more"
    assert even == wet


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    first, second = (checkpoint.load(train.train(recipe(tmp_path), resume=False)).network for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


EXTRAS = [
    {"ema_decay": 0.9},
    {"schedule": "one-cycle"},
    {"schedule": "cosine", "clip_norm": None, "clip_value": 1.0},
    {"precision": "bf16-mixed", "optimiser": "adamw"},
]


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
def test_options_of_the_trainer_run(tmp_path: Path, extra: dict) -> None:
    assert train.train(recipe(tmp_path, **extra)).exists()


def test_a_run_is_not_resumed_with_other_data_or_scales(tmp_path: Path) -> None:
    settings = recipe(tmp_path)
    train.train(settings)
    scaled = settings.windows.model_copy(update={"stride": 2})
    with pytest.raises(ConfigError, match="windows changed since this run began; use another name, or --no-resume"):
        train.train(settings.model_copy(update={"windows": scaled}))


def test_event_stores_train_too(tmp_path: Path) -> None:
    for label, first in (("a", 0), ("b", 40)):
        synthetic.make_store(tmp_path / "frames", range(first, first + 12), sequence=label, cadence=None)
    settings = recipe(tmp_path)
    spans = {"train": [{"store": settings.train[0].store, "end": "2010-08-26T02:00Z"}],
             "valid": [{"store": settings.train[0].store, "start": "2010-08-26T02:00Z"}]}  # fmt: skip
    path = train.train(Recipe.model_validate(settings.model_dump() | spans))
    assert checkpoint.read_card(path).cadence_seconds == 300


def test_fine_tuning_starts_from_a_checkpoint(tmp_path: Path) -> None:
    path = train.train(recipe(tmp_path))
    tuned = recipe(tmp_path, learning_rate=1e-12).model_copy(update={"name": "tuned", "start_from": path})
    before, after = checkpoint.load(path).network, checkpoint.load(train.train(tuned)).network
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_overlap_of_train_and_valid_is_refused(tmp_path: Path) -> None:
    settings = recipe(tmp_path)
    with pytest.raises(ConfigError, match="frames are in train and valid"):
        train.train(settings.model_copy(update={"valid": settings.train}))


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    settings = recipe(tmp_path).model_copy(update={"model": "persistence", "options": {}})
    with pytest.raises(ConfigError, match="persistence has nothing to learn"):
        train.train(settings)
