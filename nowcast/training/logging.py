"""Logs of a training: CSV and TensorBoard in its run folder, and MLflow if the recipe names one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nowcast.core.errors import ConfigError, MissingExtra
from nowcast.core.torchvision_cpu import import_torchvision

import_torchvision()  # before Lightning, which imports it too

import lightning  # noqa: E402
from lightning.fabric.utilities.rank_zero import rank_zero_only  # noqa: E402
from lightning.pytorch import callbacks, loggers  # noqa: E402

from nowcast.config import Recipe  # noqa: E402
from nowcast.data.loader import Loader  # noqa: E402
from nowcast.registry.checkpoint import Card  # noqa: E402

log = logging.getLogger(__name__)
RUN = "mlflow-run.txt"
"""File with the id of the MLflow run, in which a resumed training continues."""
EXPERIMENT = "nowcast"


def training_loggers(recipe: Recipe, folder: Path, *, resume: bool) -> list[loggers.Logger]:
    """Build all loggers of a training; CSV rows are written to the disk at once.

    Raises:
        MissingExtra: If the recipe names an MLflow and it is not installed.
        ConfigError: If MLflow does not answer.
    """
    every = recipe.trainer.log_every
    kept: list[loggers.Logger] = [
        loggers.CSVLogger(folder, name="csv", flush_logs_every_n_steps=every),
        loggers.TensorBoardLogger(folder, name="tensorboard"),
    ]
    return kept + ([_mlflow(recipe, folder, resume=resume)] if recipe.trainer.mlflow else [])


class TolerantMLFlowLogger(loggers.MLFlowLogger):
    """Logs to MLflow; failures become warnings, so that they do not end the training."""

    def log_metrics(self, *arguments: Any, **keywords: Any) -> None:
        """Log metrics, or warn."""
        self.attempt(super().log_metrics, *arguments, **keywords)

    def finalize(self, *arguments: Any) -> None:
        """End the run, or warn."""
        self.attempt(super().finalize, *arguments)

    def attempt(self, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        """Call a function of MLflow; log a warning if it fails."""
        try:
            call(*arguments, **keywords)
        except Exception as error:
            log.warning("MLflow was not told: %s", str(error).partition("\n")[0], exc_info=True)


def _mlflow(recipe: Recipe, folder: Path, *, resume: bool) -> loggers.MLFlowLogger:
    """Open a run named after the recipe, or the run that a resumed training began."""
    try:
        import mlflow
    except ModuleNotFoundError:
        raise MissingExtra("trainer.mlflow needs MLflow: pip install 'nowcast-radar[mlflow]'.") from None
    where, note = str(recipe.trainer.mlflow), folder / RUN
    artifacts = None
    if "://" not in where:
        home = Path(where).resolve()
        home.mkdir(parents=True, exist_ok=True)
        where, artifacts = f"sqlite:///{home}/mlflow.db", (home / "artifacts").as_uri()
    known = note.read_text().strip() if resume and note.exists() else None
    tracker = TolerantMLFlowLogger(
        EXPERIMENT, recipe.name, where, run_id=known, artifact_location=artifacts, synchronous=False
    )
    if getattr(rank_zero_only, "rank", 0) == 0:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            note.write_text(str(tracker.run_id))
        except mlflow.exceptions.MlflowException as error:
            raise ConfigError(f"trainer.mlflow: {where} does not answer: {str(error).splitlines()[0]}") from None
        tracker.log_hyperparams(recipe.model_dump(mode="json"))
    return tracker


def report(trainer: lightning.Trainer, card: Card, files: list[Path]) -> None:
    """Upload the card and the finished checkpoints to MLflow, if the training logs to it."""
    for tracker in trainer.loggers:
        if isinstance(tracker, TolerantMLFlowLogger):
            run, client = str(tracker.run_id), tracker.experiment
            tracker.attempt(client.log_dict, run, card.model_dump(mode="json"), "card.json")
            for file in files:
                tracker.attempt(client.log_artifact, run, str(file))


class InputWait(callbacks.Callback):
    """Logs ``wait_share``, the share of an epoch's time that was spent waiting for batches.

    Above about 5 %, more loader processes (``trainer.workers``) or a faster disk make the training faster.
    """

    def __init__(self, batches: Loader) -> None:
        self.batches = batches
        self.seconds = self.waited = 0.0
        """Seconds of training and of waiting, over all epochs of this process."""

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Start the clock for an epoch that is resumed in the middle too."""
        self.on_train_epoch_start(trainer, module)

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Start the clock of the epoch."""
        self.began = self.counted = time.perf_counter()
        self.before = self.seen = self.batches.waited

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        """Add up the times, and log the share of the epoch so far."""
        now, waited = time.perf_counter(), self.batches.waited
        self.seconds, self.waited = self.seconds + now - self.counted, self.waited + waited - self.seen
        self.counted, self.seen = now, waited
        module.log("wait_share", (waited - self.before) / (now - self.began), batch_size=1)

    @property
    def share(self) -> float:
        """Share of the time spent waiting, over all epochs of this process."""
        return self.waited / max(self.seconds, 1e-9)
