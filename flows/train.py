"""Training, one flow per network: ``train-convlstm``, ``train-convgru``, ..."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from prefect import Flow, flow
from prefect.artifacts import create_markdown_artifact
from prefect.concurrency.sync import concurrency
from pydantic import Field

from nowcast.core.errors import ConfigError
from nowcast.flows.report import page, progress_bar

if TYPE_CHECKING:
    from nowcast.config import Recipe

GPU = "gpu"
"""Global concurrency limit that trainings queue for."""

# What a form of Prefect asks for: a number out of these bounds is refused before a run is made.
RecipeFile = Annotated[str, Field(pattern=r"\.ya?ml$")]
Weights = Annotated[str, Field(pattern=r"\.safetensors$")]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][\w.-]*$")]
Count = Annotated[int, Field(ge=1)]
Minutes = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Windows = Annotated[int, Field(ge=0, le=10_000)]
Device = Literal["auto", "cpu", "gpu"]


def train_flow(model: str) -> Flow[Any, str]:
    """The flow that trains one network.

    Args:
        model: Name in the model table.
    """

    @flow(name=f"train-{model}")
    def train(
        recipe: RecipeFile,
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
        """Trains a network and exports its checkpoint, whose path is returned.

        Args:
            recipe: Recipe file, or the name of a shipped one. What is left empty below is as it says.
            name: Of the run and its folder.
            start_from: Checkpoint to go on from; weights that fit are taken over.
            epochs: Training ends after so many.
            minutes: Training ends after this time, validations included.
            batch_size: Windows per step on one device; lower it where memory is short.
            learning_rate: Of the optimiser.
            accelerator: auto takes a GPU where there is one.
            devices: GPUs, or processes on a CPU.
            overrides: Other changes to the recipe, one a line: trainer.wet_weight=8
            resume: Go on where the last run of this name stopped.
            score_windows: Validation windows on which the network is scored at the end, beside persistence and
                extrapolation; 0: none.
            register_in: Operations file of a chain in whose registry the result becomes a challenger.
        """
        from nowcast import config

        trainer = {
            "epochs": epochs,
            "minutes": minutes,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "accelerator": accelerator,
            "devices": devices,
        }
        changes = given({"name": name, "start_from": start_from} | _below("trainer", trainer))
        settings = config.load(config.Recipe, recipe, [*config.words(changes), *overrides])
        if settings.model.partition(":")[0] != model:
            raise ConfigError(f"{recipe}: model: train-{model} does not train {settings.model}.")
        return fit(settings, key=f"train-{model}", resume=resume, score_windows=score_windows, register_in=register_in)

    return train


def fit(settings: Recipe, *, key: str, resume: bool, score_windows: int, register_in: str | None) -> str:
    """Trains when a place is free, and shows how far it is and what came out.

    Args:
        settings: What to train.
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
    """Those that a form was filled in with."""
    return {key: value for key, value in values.items() if value is not None}


def _below(section: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for key, value in values.items()}


def __getattr__(name: str) -> Flow[Any, str]:
    """``nowcast.flows.train.convlstm``, the entry point of a deployment, made when Prefect asks for it."""
    from nowcast.models import MODELS

    if name not in MODELS:
        raise AttributeError(f"no network {name!r} to train; known: {', '.join(MODELS)}")
    return train_flow(name)
