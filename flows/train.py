"""Training, one flow per network: ``train-convlstm``, ``train-convgru``, ..."""

from __future__ import annotations

from typing import Any

from prefect import Flow, flow
from prefect.artifacts import create_markdown_artifact
from prefect.concurrency.sync import concurrency

from flows.report import progress_bar

GPU = "gpu"
"""Global concurrency limit that trainings queue for."""


def train_flow(model: str) -> Flow[Any, str]:
    """The flow that trains one network.

    Args:
        model: Name in the model table.
    """

    @flow(name=f"train-{model}")
    def train(recipe: str, overrides: tuple[str, ...] = (), resume: bool = True) -> str:
        """Trains a network and exports its checkpoint, whose path is returned.

        Args:
            recipe: Recipe file, or the name of a shipped one.
            overrides: Changes to it: trainer.epochs=3.
            resume: Go on where the last run of this recipe stopped.
        """
        from nowcast import config

        settings = config.load(config.Recipe, recipe, overrides)
        if settings.model.partition(":")[0] != model:
            raise config.ConfigError(f"{recipe}: model: train-{model} does not train {settings.model}.")
        from nowcast.train import train as fit

        # A lease lost when the server restarts must not end days of training.
        with concurrency(GPU, occupy=1, strict=True, raise_on_lease_renewal_failure=False):
            checkpoint = fit(settings, resume=resume, progress=progress_bar(f"train-{model}-progress"))
        create_markdown_artifact(key=f"train-{model}", markdown=f"{settings.name}: `{checkpoint}`")
        return str(checkpoint)

    return train


def __getattr__(name: str) -> Flow[Any, str]:
    """``flows.train.convlstm``, the entry point of a deployment, made when Prefect asks for it."""
    from models import MODELS

    if name not in MODELS:
        raise AttributeError(f"no network {name!r} to train; known: {', '.join(MODELS)}")
    return train_flow(name)
