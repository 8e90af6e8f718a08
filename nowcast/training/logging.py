"""Where the numbers of a training go: CSV and TensorBoard in its run folder, and MLflow where a recipe names one."""

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
"""Names the run at MLflow that a training goes on in."""
EXPERIMENT = "nowcast"


def training_loggers(recipe: Recipe, folder: Path, *, resume: bool) -> list[loggers.Logger]:
    """All of them; rows are on the disk when they are made.

    Raises:
        MissingExtra: If MLflow is asked for and not installed.
        ConfigError: If it does not answer.
    """
    every = recipe.trainer.log_every
    kept: list[loggers.Logger] = [
        loggers.CSVLogger(folder, name="csv", flush_logs_every_n_steps=every),
        loggers.TensorBoardLogger(folder, name="tensorboard"),
    ]
    return kept + ([_mlflow(recipe, folder, resume=resume)] if recipe.trainer.mlflow else [])


class TolerantMLFlowLogger(loggers.MLFlowLogger):
    """MLflow of which a failure is a warning: it must not cost a training."""

    def log_metrics(self, *arguments: Any, **keywords: Any) -> None:
        self.attempt(super().log_metrics, *arguments, **keywords)

    def finalize(self, *arguments: Any) -> None:
        self.attempt(super().finalize, *arguments)

    def attempt(self, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        try:
            call(*arguments, **keywords)
        except Exception as error:
            log.warning("MLflow was not told: %s", str(error).partition("\n")[0], exc_info=True)


def _mlflow(recipe: Recipe, folder: Path, *, resume: bool) -> loggers.MLFlowLogger:
    """A run of the recipe's name, or the one that the training began in."""
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
    """Leaves the card and the finished checkpoints at MLflow, if it is told of the training."""
    for tracker in trainer.loggers:
        if isinstance(tracker, TolerantMLFlowLogger):
            run, client = str(tracker.run_id), tracker.experiment
            tracker.attempt(client.log_dict, run, card.model_dump(mode="json"), "card.json")
            for file in files:
                tracker.attempt(client.log_artifact, run, str(file))


class InputWait(callbacks.Callback):
    """Logs the share of the time that a training waits for its input: seconds waiting / seconds, of every epoch.

    Above some 5 % more loader processes (``trainer.workers``) or a faster disk make the training faster.
    """

    def __init__(self, batches: Loader) -> None:
        self.batches = batches
        self.seconds = self.waited = 0.0
        """Of all epochs of this process."""

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Also in the middle of an epoch that was begun before."""
        self.on_train_epoch_start(trainer, module)

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.began = self.counted = time.perf_counter()
        self.before = self.seen = self.batches.waited

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        now, waited = time.perf_counter(), self.batches.waited
        self.seconds, self.waited = self.seconds + now - self.counted, self.waited + waited - self.seen
        self.counted, self.seen = now, waited
        module.log("wait_share", (waited - self.before) / (now - self.began), batch_size=1)

    @property
    def share(self) -> float:
        return self.waited / max(self.seconds, 1e-9)
