"""Flows that train, one per network: ``train-convlstm``, ``train-convgru``, ..."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from prefect import Flow, flow
from prefect.artifacts import create_markdown_artifact
from prefect.concurrency.sync import concurrency
from pydantic import Field

from nowcast.core.errors import ConfigError
from nowcast.flows.report import page, progress_bar

if TYPE_CHECKING:
    from nowcast.config import Benchmark, Recipe

Settings = TypeVar("Settings", "Recipe", "Benchmark")

GPU = "gpu"
"""Name of the global concurrency limit that trainings wait for."""

# Types of the parameters: Prefect refuses a value out of these bounds before it creates a run.
RecipeFile = Annotated[str, Field(pattern=r"\.ya?ml$")]
Weights = Annotated[str, Field(pattern=r"\.safetensors$")]
Store = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][\w.-]*$")]
Count = Annotated[int, Field(ge=1)]
Minutes = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Windows = Annotated[int, Field(ge=0, le=10_000)]
Device = Literal["auto", "cpu", "gpu"]


def train_flow(model: str) -> Flow[Any, str]:
    """Make the flow that trains one network.

    Args:
        model: Name in the model table.
    """

    @flow(name=f"train-{model}")
    def train(
        recipe: RecipeFile,
        store: Store | None = None,
        archive: Store | None = None,
        name: Name | None = None,
        start_from: Weights | None = None,
        epochs: Count | None = None,
        minutes: Minutes | None = None,
        batch_size: Count | None = None,
        learning_rate: Rate | None = None,
        accelerator: Device | None = None,
        devices: Count | None = None,
        overrides: tuple[str, ...] = (),
        resume: bool = True,
        score_windows: Windows = 24,
        register_in: RecipeFile | None = None,
    ) -> str:
        """Train a network and export its checkpoint; return its path.

        Args:
            recipe: Recipe file, or the name of a shipped one; its values apply to what is left empty below.
            store: Cube store to train on, the newest fifth held out; left empty, that of the recipe or the archive.
            archive: Store of the domain, in place of the stores that a shipped recipe names.
            name: Name of the run and its folder.
            start_from: Checkpoint to go on from; weights that fit are taken over.
            epochs: Training ends after so many epochs.
            minutes: Training ends after this time, validations included.
            batch_size: Windows per step on one device; lower it where memory is short.
            learning_rate: Learning rate of the optimiser.
            accelerator: auto takes a GPU where there is one.
            devices: Number of GPUs, or of processes on a CPU.
            overrides: Other changes to the recipe, one per line: trainer.wet_weight=8
            resume: Go on where the last run of this name stopped.
            score_windows: Validation windows on which the network is scored at the end, beside persistence and
                extrapolation; 0: none.
            register_in: Operations file of a chain in whose registry the result becomes a challenger.
        """
        changes = {
            "name": name,
            "start_from": start_from,
            "trainer.epochs": epochs,
            "trainer.minutes": minutes,
            "trainer.batch_size": batch_size,
            "trainer.learning_rate": learning_rate,
            "trainer.accelerator": accelerator,
            "trainer.devices": devices,
        }
        settings = _load(recipe, model, given(changes), overrides)
        settings = with_data(settings, recipe, store=store, archive=archive)
        return fit(settings, key=f"train-{model}", resume=resume, score_windows=score_windows, register_in=register_in)

    return train


def _load(recipe: str, model: str, changes: dict[str, Any], overrides: tuple[str, ...]) -> Recipe:
    """Load a recipe with changes to it.

    Raises:
        ConfigError: If it is refused, or trains another network.
    """
    from nowcast import config

    settings = config.load(config.Recipe, recipe, [*config.words(changes), *overrides])
    if settings.model.partition(":")[0] != model:
        raise ConfigError(f"{recipe}: model: train-{model} does not train {settings.model}.")
    return settings


def with_data(settings: Settings, file: str, *, store: str | None, archive: str | None) -> Settings:
    """Put a recipe or a benchmark on the store that is named, or a shipped one on the domain's archive.

    Raises:
        ConfigError: Says what is missing, and the command that mends it.
    """
    from nowcast.data.archive import check_there, on_archive, shipped

    chosen = store or (archive if shipped(file) else None)
    settings = on_archive(settings, chosen) if chosen else settings
    check_there(settings, file)
    return settings


def fit(settings: Recipe, *, key: str, resume: bool, score_windows: int, register_in: str | None) -> str:
    """Train once the concurrency limit allows it; show progress and result as artifacts.

    Args:
        settings: Recipe of the training.
        key: Name of the artifacts.
        resume: Go on where the last run of this name stopped.
        score_windows: Validation windows that are scored at the end; 0: none.
        register_in: Operations file of a chain in whose registry the result becomes a challenger; None: none.

    Returns:
        Path of the checkpoint.
    """
    from nowcast.training.run import train as learn

    # A lease lost when the server restarts must not end days of training.
    with concurrency(GPU, occupy=1, strict=True, raise_on_lease_renewal_failure=False):
        checkpoint = learn(settings, resume=resume, progress=progress_bar(f"{key}-progress"))
        card = _scored(settings, checkpoint, score_windows)
    if register_in:
        from nowcast.operations import cycle, promotion

        promotion.register(cycle.load(register_in), checkpoint, why=f"trained by {key}")
    text = page(card) if card else f"# {settings.name}\n"
    create_markdown_artifact(key=key, markdown=f"{text}\nCheckpoint: `{checkpoint}`", description=settings.name)
    return str(checkpoint)


def _scored(settings: Recipe, checkpoint: Path, windows: int) -> Path | None:
    if not windows:
        return None
    from nowcast.benchmark.report import scorecard

    return scorecard(settings, checkpoint, windows=windows)


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Drop the parameters that were left empty, whose value is None."""
    return {key: value for key, value in values.items() if value is not None}


def __getattr__(name: str) -> Flow[Any, str]:
    """Make a flow when Prefect looks up the entry point of its deployment, as ``nowcast.flows.train.convlstm``."""
    from nowcast.models import MODELS

    if name not in MODELS:
        raise AttributeError(f"no network {name!r} to train; known: {', '.join(MODELS)}")
    return train_flow(name)
