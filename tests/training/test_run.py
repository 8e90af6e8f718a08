"""Training: a debug recipe learns, resumes, exports; mistakes in the data are refused."""

from __future__ import annotations

import csv
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch
import yaml

from nowcast.config import Recipe, Span, TrainerSettings, WindowSettings, load
from nowcast.core.errors import ConfigError, MissingExtra, TrainingError
from nowcast.core.units import get_quantity
from nowcast.data.loader import Windows, loader
from nowcast.models import MODELS, model_class
from nowcast.registry import checkpoint
from nowcast.store import FrameStore
from nowcast.training import run as training
from nowcast.training.callbacks import short_of_memory
from tests import synthetic
from tests.paths import REAL_DATA
from tests.sources_video import idx

lightning = training.lightning
DIGITS = REAL_DATA / "mnist" / "t10k-images-idx3-ubyte.gz"
TRAINABLE = [name for name in MODELS if model_class(name).trainable]


def recipe(tmp_path: Path, model: str = "convgru", **trainer: object) -> Recipe:
    path = str(tmp_path / "frames")
    if not Path(path).exists():
        synthetic.make_store(tmp_path / "frames", range(24))
    return Recipe.model_validate(
        {
            "name": "debug",
            "model": f"{model}:debug",
            "runs": tmp_path / "runs",
            "train": [{"store": path, "end": "2010-08-26T01:00Z"}],
            "valid": [{"store": path, "start": "2010-08-26T01:00Z"}],
            "windows": {"quantity": "rainfall_rate", "in_steps": 2, "out_steps": 2, "crop": 32, "crops_per_window": 2},
            "trainer": {
                "epochs": 1,
                "batch_size": 2,
                "batches_per_epoch": 3,
                "valid_batches": 2,
                "workers": 0,
                "accelerator": "cpu",
                "learning_rate": 1e-3,
                "clip_norm": 1.0,
                **trainer,
            },
        }
    )


def losses(tmp_path: Path, column: str = "valid_loss", *, name: str = "debug") -> list[float]:
    files = sorted((tmp_path / "runs" / name / "csv").glob("version_*/metrics.csv"))
    return [
        float(row[column]) for path in files for row in csv.DictReader(path.read_text().splitlines()) if row[column]
    ]


@pytest.mark.parametrize("model", TRAINABLE)
def test_every_network_trains_and_its_export_forecasts(tmp_path: Path, model: str) -> None:
    path = training.train(recipe(tmp_path, model))
    card = checkpoint.read_card(path)
    assert card.model == f"{model}:debug"
    assert card.training["steps"] == 3
    assert card.data[0]["frames"] == 12
    assert card.data[0]["title"] == "synthetic rain"
    assert card.cadence_seconds == 300
    assert {"last.ckpt", "best.safetensors", "last.safetensors", "recipe.yaml"} <= {
        item.name for item in path.parent.iterdir()
    }


def test_the_loss_falls_and_a_run_resumes(tmp_path: Path) -> None:
    training.train(recipe(tmp_path, epochs=2, batches_per_epoch=12))
    training.train(recipe(tmp_path, epochs=4, batches_per_epoch=12))
    assert checkpoint.read_card(tmp_path / "runs/debug/last.safetensors").training["epochs"] == 4
    found = losses(tmp_path)
    assert len(found) == 4
    assert found[-1] < 0.7 * found[0]


def test_the_last_weights_are_kept_even_if_they_are_not_better(tmp_path: Path) -> None:
    training.train(recipe(tmp_path, epochs=3, learning_rate=3.0))
    best, last = (
        checkpoint.read_card(tmp_path / f"runs/debug/{name}.safetensors").training for name in ("best", "last")
    )
    assert last["epochs"] == 3
    assert best["epochs"] < 3


def test_rain_can_weigh_more_than_dry_pixels(tmp_path: Path) -> None:
    even, wet = (training.train(recipe(tmp_path, wet_weight=weight), resume=False) for weight in (0.0, 9.0))
    assert checkpoint.read_card(wet).recipe["trainer"]["wet_weight"] == 9.0
    assert losses(tmp_path)[1] > losses(tmp_path)[0], "an error in rain costs more"
    assert even == wet


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    first, second = (checkpoint.load(training.train(recipe(tmp_path), resume=False)).network for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_chosen_loss_is_trained_and_validated_in_physical_limits(tmp_path: Path) -> None:
    """A loss that counts rain from 5 mm/h on alone is 0 where there is none, and is that of the sum of its parts."""
    settings = recipe(tmp_path)
    scaling = settings.windows.scaling or get_quantity("rainfall_rate").scaling
    term = {"name": "balanced", "limits": [5.0], "options": {"weights": [0, 1], "absolute": 0}}
    chosen = Recipe.model_validate(settings.model_dump() | {"loss": [term, {"name": "own", "weight": 2}]})
    network = training.build("convgru:debug", in_steps=2, out_steps=2)
    loss = training._chosen_loss(chosen, network, scaling)
    truth = torch.from_numpy(scaling.encode(np.array([4.9, 5.0, 20.0])))[None, None, None, None]
    assert loss is not None
    assert float(loss(truth + 0.5, truth)) == pytest.approx(0.25 * 2 / 3 + 2 * 0.25)
    training.train(chosen)
    assert checkpoint.read_card(tmp_path / "runs/debug/best.safetensors").recipe["loss"][0]["limits"] == [5.0]


def test_rain_rates_limit_reflectivity() -> None:
    """The limits of HKO-7, 2 mm/h by Z = 58.53 R^1.56: (17.67 + 4.70 + 10) / 70."""
    shipped = load(Recipe, "training/trajgru-hko7.yaml")
    assert shipped.windows.scaling
    (term,) = shipped.loss
    found = training._loss(term, shipped, shipped.windows.scaling.build())
    assert found.keywords["limits"][0] == pytest.approx(0.4624, abs=1e-4)  # type: ignore[attr-defined]


def test_members_are_drawn_for_a_loss_of_ensembles(tmp_path: Path) -> None:
    """Forecasts of a network that skips branches at random differ; the loss is less than the mean absolute error."""
    settings = recipe(tmp_path, "simvp", batch_size=2)
    changes = {"loss": {"name": "crps", "options": {"members": 3}}, "options": {"drop_path": 0.3}}
    assert checkpoint.read_card(training.train(Recipe.model_validate(settings.model_dump() | changes))).training[
        "steps"
    ]


def test_a_recipe_of_an_unknown_loss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown loss 'mes'; known: mse, .*, own"):
        Recipe.model_validate(recipe(tmp_path).model_dump() | {"loss": "mes"})


def test_schedules_by_hand() -> None:
    """Of 100 steps: rising over 20, then along a cosine, or in steps, but not below a tenth."""

    def share(done: float, **settings: object) -> float:
        return training.rate_share(TrainerSettings.model_validate(settings), done, 100)

    cosine = {"schedule": "cosine", "warm_up": 0.2, "lowest_rate": 0.1}
    assert [share(done, **cosine) for done in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0.05, 0.55, 1, 0.5, 0.1])
    steps = {"schedule": "step", "milestones": [0.3, 0.6], "gamma": 0.5, "lowest_rate": 0.3}
    assert [share(done, **steps) for done in (0, 0.29, 0.3, 0.6)] == pytest.approx([1, 1, 0.5, 0.3])
    assert [share(done, schedule="constant", warm_up=0.1) for done in (0.045, 0.5)] == pytest.approx([0.55, 1])
    linear = {"schedule": "linear", "hold": 0.5, "eta_min": 1e-5, "learning_rate": 1e-4}
    assert [share(done, **linear) for done in (0.4, 0.5, 0.75, 1)] == pytest.approx([1, 1, 0.55, 0.1])
    annealed = {"schedule": "cosine", "eta_min": 2e-5, "learning_rate": 1e-4}
    assert [share(done, **annealed) for done in (0, 0.5, 1)] == pytest.approx([1, 0.6, 0.2])
    epochs = {"schedule": "step", "step_epochs": 2, "gamma": 0.5, "epochs": 5}
    assert [share(step / 100, **epochs) for step in (0, 39, 40, 79, 80)] == pytest.approx([1, 1, 0.5, 0.5, 0.25])


@pytest.mark.parametrize(
    ("settings", "kind", "made"),
    [
        ({"optimiser": "sgd", "momentum": 0.9, "weight_decay": 0.1}, torch.optim.SGD, {"momentum": 0.9}),
        ({"optimiser": "rmsprop", "momentum": 0.5, "eps": 1e-6}, torch.optim.RMSprop, {"momentum": 0.5, "eps": 1e-6}),
        ({"optimiser": "adam", "eps": 1e-4}, torch.optim.Adam, {"eps": 1e-4, "betas": (0.9, 0.999)}),
        ({"optimiser": "adamw", "weight_decay": 0.1}, torch.optim.AdamW, {"eps": 1e-8, "weight_decay": 0.1}),
    ],
)
def test_optimisers_are_those_of_torch(settings: dict, kind: type, made: dict) -> None:
    found = training._optimiser(TrainerSettings.model_validate(settings), torch.nn.Linear(1, 1).parameters())
    assert type(found) is kind
    assert found.defaults["lr"] == 1e-4
    assert {key: found.defaults[key] for key in made} == made


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"schedule": "one-cycle", "minutes": 5}, "use cosine with warm_up"),
        ({"schedule": "plateau", "warm_up": 0.1}, "schedule plateau has none"),
        ({"schedule": "step"}, "need each other"),
        ({"milestones": [0.5]}, "need each other"),
        ({"schedule": "step", "milestones": [0.5], "step_epochs": 2}, "exclude each other"),
        ({"schedule": "step", "step_epochs": 2, "minutes": 5}, "use milestones"),
        ({"momentum": 0.5}, "optimiser adam has betas"),
        ({"eta_min": 1e-6}, "schedule plateau has none"),
        ({"schedule": "cosine", "eta_min": 1e-6, "lowest_rate": 0.1}, "exclude each other"),
        ({"schedule": "linear", "eta_min": 1e-3}, "not below learning_rate"),
    ],
)
def test_schedules_that_cannot_be_are_refused(settings: dict, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        TrainerSettings.model_validate(settings)


def test_batches_accumulate_to_one_step(tmp_path: Path) -> None:
    """Three batches of two windows: two steps per epoch, of four windows and of the two that are left."""
    path = training.train(recipe(tmp_path, epochs=2, accumulate=2, schedule="cosine", warm_up=0.5))
    assert checkpoint.read_card(path.with_name("last.safetensors")).training["steps"] == 4


EXTRAS = [
    {"ema_decay": 0.9},
    {"schedule": "cosine", "warm_up": 0.2, "minutes": 1.0},
    {"schedule": "step", "milestones": [0.5], "betas": [0.5, 0.99]},
    {"schedule": "one-cycle"},
    {"schedule": "cosine", "clip_norm": None, "clip_value": 1.0},
    {"precision": "bf16-mixed", "optimiser": "adamw"},
    {"optimiser": "sgd", "momentum": 0.9, "schedule": "linear", "eta_min": 1e-6},
    {"optimiser": "rmsprop", "schedule": "step", "step_epochs": 1},
    {"checkpointing": True},
]


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
def test_options_of_the_trainer_run(tmp_path: Path, extra: dict) -> None:
    assert training.train(recipe(tmp_path, **extra)).exists()


def test_a_run_is_not_resumed_with_other_data_or_scales(tmp_path: Path) -> None:
    settings = recipe(tmp_path)
    training.train(settings)
    scaled = settings.windows.model_copy(update={"stride": 2})
    with pytest.raises(ConfigError, match="windows changed since this run began; use another name, or --no-resume"):
        training.train(settings.model_copy(update={"windows": scaled}))


def test_a_planned_schedule_cannot_be_made_longer(tmp_path: Path) -> None:
    training.train(recipe(tmp_path, schedule="one-cycle"))
    with pytest.raises(ConfigError, match="trainer changed since this run began"):
        training.train(recipe(tmp_path, schedule="one-cycle", epochs=2))


def test_event_stores_train_too(tmp_path: Path) -> None:
    for label, first in (("a", 0), ("b", 40)):
        synthetic.make_store(tmp_path / "frames", range(first, first + 12), sequence=label, cadence=None)
    settings = recipe(tmp_path)
    spans = {
        "train": [{"store": settings.train[0].store, "end": "2010-08-26T02:00Z"}],
        "valid": [{"store": settings.train[0].store, "start": "2010-08-26T02:00Z"}],
    }
    path = training.train(Recipe.model_validate(settings.model_dump() | spans))
    assert checkpoint.read_card(path).cadence_seconds == 300


def test_fine_tuning_starts_from_a_checkpoint(tmp_path: Path) -> None:
    path = training.train(recipe(tmp_path))
    tuned = recipe(tmp_path, learning_rate=1e-12).model_copy(update={"name": "tuned", "start_from": path})
    before, after = checkpoint.load(path).network, checkpoint.load(training.train(tuned)).network
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def tuned(tmp_path: Path, start: Path, method: str | None, *, name: str = "tuned", **changes: object) -> Recipe:
    """Ten steps on from a checkpoint; what is not said of the network is the checkpoint's."""
    settings = recipe(tmp_path, "gs2pm", learning_rate=1e-2, batches_per_epoch=10)
    changes = {"name": name, "start_from": start, "tuning": method, "model": "gs2pm"} | changes
    return Recipe.model_validate(settings.model_dump() | changes)


def test_prompt_tuning_leaves_a_small_file_over_its_base(tmp_path: Path) -> None:
    base = training.train(recipe(tmp_path, "gs2pm"))
    path = training.train(tuned(tmp_path, base, "prompt"))
    card = checkpoint.read_card(path)
    assert card.base == {"digest": checkpoint.file_digest(base), "path": str(base.resolve())}
    assert card.model == "gs2pm:debug"
    assert path.stat().st_size < base.stat().st_size / 5
    before, after = (checkpoint.load(file).network.state_dict() for file in (base, path))
    assert {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"prompt"}
    again = training.train(tuned(tmp_path, path, "prompt", name="again"))
    assert checkpoint.read_card(again).base == card.base
    whole = training.train(tuned(tmp_path, path, "full", name="whole"))
    assert checkpoint.read_card(whole).base is None


def test_a_prompt_is_not_tuned_over_other_lengths(tmp_path: Path) -> None:
    base = training.train(recipe(tmp_path, "gs2pm"))
    windows = recipe(tmp_path).windows.model_copy(update={"in_steps": 3})
    with pytest.raises(ConfigError, match=r"tuning prompt leaves other .*, and .* has no translator"):
        training.train(tuned(tmp_path, base, "prompt", windows=windows))


def test_other_lengths_keep_the_weights_that_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = training.train(recipe(tmp_path, "gs2pm"))
    windows = recipe(tmp_path).windows.model_copy(update={"out_steps": 3})
    path = training.train(tuned(tmp_path, base, "full", windows=windows, options={"at_once": True}))
    assert "new weights, since" in caplog.text
    assert "translator.2." in caplog.text
    assert "translator.1." not in caplog.text
    assert checkpoint.read_card(path).options == {"at_once": True}
    assert checkpoint.load(path).network.made == 3


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model": "convgru:debug"}, "start_from: .* is a gs2pm, and model says convgru"),
        ({"tuning": "lora"}, "GS2PM has no tuning 'lora'; it can be tuned by: full, prompt"),
    ],
)
def test_tuning_that_cannot_be_is_refused(tmp_path: Path, changes: dict, fault: str) -> None:
    base = training.train(recipe(tmp_path, "gs2pm"))
    with pytest.raises(ValueError, match=fault):
        training.train(tuned(tmp_path, base, "full", **changes))


def test_networks_without_a_prompt_say_so(tmp_path: Path) -> None:
    base = training.train(recipe(tmp_path))
    settings = recipe(tmp_path).model_copy(update={"name": "tuned", "start_from": base, "tuning": "prompt"})
    with pytest.raises(ValueError, match="ConvGRU has no tuning 'prompt'; it can be tuned by: full"):
        training.train(settings)
    with pytest.raises(ValueError, match="tuning full needs start_from"):
        Recipe.model_validate(recipe(tmp_path).model_dump() | {"tuning": "full"})


def test_overlap_of_train_and_valid_is_refused(tmp_path: Path) -> None:
    settings = recipe(tmp_path)
    with pytest.raises(ConfigError, match="frames are in train and valid"):
        training.train(settings.model_copy(update={"valid": settings.train}))


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    settings = recipe(tmp_path).model_copy(update={"model": "persistence", "options": {}})
    with pytest.raises(ConfigError, match="persistence has nothing to learn"):
        training.train(settings)


# --- resuming in the middle of an epoch ---------------------------------------------------------------


class Cut(Exception):
    """The power fails."""


@pytest.mark.parametrize(
    "options",
    [{"clip_norm": None}, {"schedule": "one-cycle", "workers": 2}, {"schedule": "cosine", "ema_decay": 0.9}],
    ids=str,
)
def test_a_run_that_was_cut_off_ends_as_if_it_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    settings = recipe(tmp_path, epochs=2, batches_per_epoch=5, checkpoint_minutes=1e-6, **options)
    training.train(settings.model_copy(update={"name": "whole"}))
    step, done = training.Learner.training_step, []

    def until_the_eighth(self: training.Learner, batch: dict, index: int) -> torch.Tensor:
        if len(done) == 7:
            raise Cut
        done.append(index)
        return step(self, batch, index)

    with monkeypatch.context() as power, pytest.raises(Cut):
        power.setattr(training.Learner, "training_step", until_the_eighth)
        training.train(settings)
    state = torch.load(tmp_path / "runs/debug/last.ckpt", weights_only=True)
    assert (state["epoch"], state["global_step"]) == (1, 7)
    training.train(settings)
    whole, parts = (checkpoint.load(tmp_path / f"runs/{name}/last.safetensors").network for name in ("whole", "debug"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def curve(folder: Path) -> dict[int, float]:
    """Loss of every step; a step that was made again counts as it was the last time."""
    rows = [
        row
        for file in sorted((folder / "csv").glob("version_*/metrics.csv"))
        for row in csv.DictReader(file.read_text().splitlines())
    ]
    return {int(row["step"]): float(row["train_loss"]) for row in rows if row.get("train_loss")}


def wait_for(process: subprocess.Popen, folder: Path, step: int) -> None:
    """Until the logs hold a step, with a checkpoint behind it."""
    while step not in curve(folder) or not (folder / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_in_mid_epoch_it_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    """``kill -9`` twice; PredRNN draws at random which true frames it is fed."""
    settings = recipe(tmp_path, "predrnn", epochs=2, batches_per_epoch=40, log_every=1, checkpoint_minutes=1e-6)
    trained(settings.model_copy(update={"name": "whole"}), tmp_path)
    for step in (13, 55):
        process = by_command(settings, tmp_path)
        wait_for(process, tmp_path / "runs/debug", step)
        process.kill()
        process.communicate()
    trained(settings, tmp_path)
    whole, parts = (curve(tmp_path / "runs" / name) for name in ("whole", "debug"))
    assert len(whole) == 80
    assert parts == whole


@pytest.mark.slow
def test_told_to_end_it_saves_and_says_so(tmp_path: Path) -> None:
    settings = recipe(tmp_path, epochs=1, batches_per_epoch=2000, log_every=1)
    process = by_command(settings, tmp_path)
    while 5 not in curve(tmp_path / "runs/debug"):
        time.sleep(0.05)
        assert process.poll() is None
    process.terminate()
    _, words = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "Told to end (SIGTERM) after step" in words
    assert "the same command goes on from there" in words
    state = torch.load(tmp_path / "runs/debug/last.ckpt", weights_only=True)
    assert state["global_step"] >= 6


# --- what must not cost a training ---------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_and_leaves_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first step of the second epoch."""
    settings = recipe(tmp_path, epochs=2)
    step = training.Learner.training_step

    def broken(self: training.Learner, batch: dict, index: int) -> torch.Tensor:
        loss = step(self, batch, index)
        return loss * torch.nan if self.global_step == 3 else loss

    monkeypatch.setattr(training.Learner, "training_step", broken)
    with pytest.raises(TrainingError, match=r"In step 4 the loss became nan; .* batch is in .*bad-batch-4-\*.npz"):
        training.train(settings)
    with np.load(tmp_path / "runs/debug/bad-batch-4-0.npz") as kept:
        assert kept["past"].shape == kept["future"].shape == kept["mask"].shape == (2, 2, 1, 32, 32)
        assert all(str(tmp_path / "frames") in name and "2010-08-26T00:" in name for name in kept["windows"])
    state = torch.load(tmp_path / "runs/debug/last.ckpt", weights_only=True)
    assert state["global_step"] == 3
    assert all(weight.isfinite().all() for weight in state["state_dict"].values())


def test_a_gradient_that_is_no_number_stops_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root of 0 is 0, but its slope is not finite."""
    monkeypatch.setattr(
        training.Learner, "training_step", lambda self, batch, index: (next(self.network.parameters()).sum() * 0).sqrt()
    )
    with pytest.raises(TrainingError, match="In step 1 a gradient became infinite"):
        training.train(recipe(tmp_path))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["gpu", "python", "cpu"],
)
def test_short_memory_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: object) -> torch.Tensor:
        raise error

    monkeypatch.setattr(training.Learner, "training_step", full)
    with pytest.raises(
        TrainingError,
        match=r"batches of 12 .*: set trainer.batch_size=6 trainer.accumulate=2, "
        r"which takes the same steps, or trainer.checkpointing=true",
    ):
        training.train(recipe(tmp_path, batch_size=12))


def test_what_cannot_be_halved_is_cut(tmp_path: Path) -> None:
    """A batch of one window of two crops, with checkpointing: smaller crops. And what is no lack of memory is none."""
    least = recipe(tmp_path, checkpointing=True)
    assert "set windows.crop=16." in str(short_of_memory(MemoryError(), least))
    thrice = recipe(tmp_path, batch_size=6, accumulate=2)
    assert "trainer.batch_size=2 trainer.accumulate=6" in str(short_of_memory(MemoryError(), thrice))
    assert short_of_memory(RuntimeError("shapes do not fit"), least) is None


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = recipe(tmp_path)
    training.train(settings)
    last = tmp_path / "runs/debug/last.ckpt"
    before = last.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        TrainingError, match=r"No space left on device.*The checkpoint before it is as it was; make room"
    ):
        training.train(recipe(tmp_path, epochs=2))
    assert last.read_bytes() == before
    assert not list(last.parent.glob(".*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's, of the same disk
def test_a_disk_that_fills_up_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """A real one of 12 MB, beside frames on another; the same command goes on when there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount")
    try:
        settings = recipe(tmp_path).model_copy(update={"runs": disk})
        training.train(settings)
        last = disk / "debug/last.ckpt"
        before, filler = last.read_bytes(), disk / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while file.write(bytes(4096)):
                file.flush()
        longer = settings.model_copy(update={"trainer": settings.trainer.model_copy(update={"epochs": 2})})
        with pytest.raises((TrainingError, OSError)):
            training.train(longer)
        assert last.read_bytes() == before
        filler.unlink()
        assert checkpoint.read_card(training.train(longer).with_name("last.safetensors")).training["epochs"] == 2
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_time_spent_waiting_for_input_is_logged(tmp_path: Path) -> None:
    """A loader in the same process decodes while the training waits."""
    path = training.train(recipe(tmp_path, epochs=2, log_every=1))
    shares = losses(tmp_path, "wait_share")
    assert len(shares) == 6
    assert all(0 < share < 1 for share in shares)
    share = checkpoint.read_card(path).training["input_wait_share"]
    assert isinstance(share, float)
    assert 0 < share < 1


# --- compiled, tracked ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network_trains(tmp_path: Path) -> None:
    plain, compiled = (recipe(tmp_path, "simvp", epochs=2, log_every=1, compile=way) for way in (False, True))
    training.train(plain)
    training.train(compiled.model_copy(update={"name": "compiled"}))
    assert losses(tmp_path, "train_loss") == pytest.approx(losses(tmp_path, "train_loss", name="compiled"), rel=1e-3)


def test_mlflow_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtra, match=r"trainer.mlflow needs MLflow: pip install 'nowcast-radar\[mlflow\]'"):
        training.train(recipe(tmp_path, mlflow="http://127.0.0.1:1"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path / "server"
    home.mkdir()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
            "--backend-store-uri",
            f"sqlite:///{home}/mlflow.db",
            "--artifacts-destination",
            str(home / "artifacts"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while process.poll() is None:
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_is_told_and_a_resumed_run_goes_on_in_its_own(tmp_path: Path, server: str) -> None:
    from mlflow.tracking import MlflowClient

    training.train(recipe(tmp_path, mlflow=server, log_every=1))
    training.train(recipe(tmp_path, mlflow=server, log_every=1, epochs=2))
    client = MlflowClient(server)
    (run,) = client.search_runs([client.get_experiment_by_name("nowcast").experiment_id])
    assert run.info.run_name == "debug"
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer/learning_rate"] == "0.001"
    assert {point.step for point in client.get_metric_history(run.info.run_id, "train_loss")} == set(range(6))
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {
        "card.json",
        "best.safetensors",
        "last.safetensors",
    }


class Witness(lightning.LightningModule):
    """Notes which batches it is given: epoch, number, and the sum of all codes."""

    def __init__(self, stop: int = -1) -> None:
        super().__init__()
        self.weight, self.stop, self.seen = torch.nn.Parameter(torch.zeros(1)), stop, list[tuple[int, int, int]]()

    def training_step(self, batch: dict, index: int) -> torch.Tensor:
        if len(self.seen) == self.stop:
            raise Cut
        self.seen.append((self.trainer.current_epoch, index, int(batch["frames"].long().sum())))
        return self.weight.square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def witnessed(windows: Windows, folder: Path, workers: int, *, stop: int = -1, resume: Path | None = None) -> list:
    """Three epochs of 7 batches."""
    every = training.callbacks.ModelCheckpoint(
        folder, "{step}", every_n_train_steps=1, save_top_k=-1, enable_version_counter=False
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[every],
        logger=False,
        log_every_n_steps=1,
        default_root_dir=folder,
        enable_progress_bar=False,
    )
    witness = Witness(stop)
    batches = loader(windows, batch_size=4, workers=workers, seed=3, shuffle=True, packed=True)
    with suppress(Cut):
        trainer.fit(witness, batches, ckpt_path=resume)
    return witness.seen


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_not_yet_seen_follow(tmp_path: Path, workers: int) -> None:
    """From the middle of an epoch, from its last batch but one, from its end, and from the next."""
    cube = synthetic.cube(range(30))
    cube["rainfall_rate"].encoding["quantum"] = 0.01
    train_store = tmp_path / "store"
    FrameStore(train_store).append(cube, message="m")
    settings = WindowSettings(quantity="rainfall_rate", in_steps=2, out_steps=3, crop=32)
    windows = Windows([Span(store=str(train_store))], settings, training=True)
    whole = witnessed(windows, tmp_path / "whole", 0)
    assert len(whole) == len({codes for *_, codes in whole}) == 21
    for step in (3, 6, 7, 8) if not workers else (10,):
        folder = tmp_path / f"cut-{step}"
        assert witnessed(windows, folder, workers, stop=step + 1) == whole[: step + 1]
        assert witnessed(windows, folder, workers, resume=folder / f"step={step}.ckpt") == whole[step:]


# --- other data, several processes --------------------------------------------------------------------


def test_clips_made_on_the_fly_train(tmp_path: Path) -> None:
    digits = DIGITS
    if not digits.exists():
        pictures = np.random.default_rng(0).integers(0, 256, (20, 28, 28)).astype(np.uint8)
        digits = idx(tmp_path / "digits-idx3-ubyte.gz", pictures)
    settings = recipe(tmp_path, batches_per_epoch=2, valid_batches=1)
    clips = {"images": digits, "objects": 2, "clips": 6}
    changes = {
        "train": [clips | {"seed": 1}],
        "valid": [clips | {"seed": 2}],
        "windows": {"quantity": "intensity", "in_steps": 3, "out_steps": 2},
    }
    path = training.train(Recipe.model_validate(settings.model_dump() | changes))
    card = checkpoint.read_card(path)
    assert card.training["steps"] == 2
    assert card.data[0]["objects"] == 2
    assert (card.quantity, card.scaling.low, card.scaling.high) == ("intensity", 0, 1)
    with pytest.raises(ConfigError, match="train and valid make the same clips; give them different seeds"):
        training.train(Recipe.model_validate(settings.model_dump() | changes | {"valid": [clips | {"seed": 1}]}))


def by_command(settings: Recipe, folder: Path, *, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """``nowcast train``, which Lightning starts once more for a second process."""
    file = folder / f"{settings.name}.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    return subprocess.Popen(
        [sys.executable, "-m", "nowcast.cli", "train", str(file)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "1000"} | (environment or {}),
    )


def trained(settings: Recipe, folder: Path) -> torch.nn.Module:
    """The last weights."""
    process = by_command(settings, folder)
    _, words = process.communicate(timeout=900)
    assert process.returncode == 0, words
    return checkpoint.load(settings.runs / settings.name / "last.safetensors").network


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path, strategy: str) -> None:
    """The same losses and weights, though one process sees more rain and more missing pixels than the other."""
    alone = recipe(tmp_path, epochs=2, batch_size=8, wet_weight=9.0, schedule="cosine", warm_up=0.3, log_every=1)
    halved = {"batch_size": 4, "devices": 2, "strategy": strategy, "workers": 1}
    both = alone.model_copy(update={"name": "both", "trainer": alone.trainer.model_copy(update=halved)})
    one, two = trained(alone, tmp_path), trained(both, tmp_path)
    for column in ("train_loss", "valid_loss"):
        assert losses(tmp_path, column) == pytest.approx(losses(tmp_path, column, name="both"), rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    card = checkpoint.read_card(tmp_path / "runs/both/last.safetensors")
    assert (card.training["epochs"], card.training["steps"], card.training["devices"]) == (2, 6, 2)
    resumed = both.model_copy(update={"trainer": both.trainer.model_copy(update={"patience": 3})})
    trained(resumed, tmp_path)


@pytest.mark.gpu
def test_a_gpu_trains_from_loader_processes(tmp_path: Path) -> None:
    settings = recipe(tmp_path, epochs=2, accelerator="gpu", workers=2)
    assert checkpoint.read_card(training.train(settings)).training["device"].startswith("cuda")
