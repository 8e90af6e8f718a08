"""Flows that fit a trained network to a domain, one per network with several ways of tuning: ``finetune-gs2pm``."""

from __future__ import annotations

from typing import Any, Literal

from prefect import Flow, flow
from pydantic import AwareDatetime

from nowcast.core.errors import ConfigError
from nowcast.flows.train import Count, Device, Minutes, Name, Rate, RecipeFile, Store, Weights, Windows, fit, given

Method = Literal["vp", "fp"]


def finetune_flow(model: str) -> Flow[Any, str]:
    """Make the flow that fits one network to a domain.

    Args:
        model: Name in the model table.
    """

    @flow(name=f"finetune-{model}")
    def finetune(
        base: Weights,
        store: Store | None = None,
        archive: Store | None = None,
        method: Method = "vp",
        minutes: Minutes | None = None,
        steps: Count | None = None,
        valid_from: AwareDatetime | None = None,
        name: Name | None = None,
        recipe: RecipeFile | None = None,
        batch_size: Count | None = None,
        learning_rate: Rate | None = None,
        accelerator: Device | None = None,
        overrides: tuple[str, ...] = (),
        resume: bool = True,
        score_windows: Windows = 24,
        register_in: RecipeFile | None = None,
    ) -> str:
        """Fit a pretrained network to the frames of a store; return the path of the checkpoint or prompt file.

        Args:
            base: Checkpoint to start from, or a prompt file over one.
            store: Cube store to tune on; left empty, the archive.
            archive: Store of the domain.
            method: vp tunes only the visual prompt, a small file over the base; fp tunes all parameters.
            minutes: Tuning ends after this time, validations included.
            steps: Tuning ends after so many steps of the optimiser.
            valid_from: Start of the validation frames, with its zone; left empty, they are the newest fifth.
            name: Name of the run and its folder; left empty, made of network, store and method.
            recipe: Recipe whose trainer applies; left empty, the shipped one of the method.
            batch_size: Windows per step on one device; lower it where memory is short.
            learning_rate: Learning rate of the optimiser.
            accelerator: auto takes a GPU where there is one.
            overrides: Other changes to the recipe, one per line: windows.crop=96
            resume: Go on where the last run of this name stopped.
            score_windows: Validation windows on which the result is scored beside persistence, extrapolation and the
                base; 0: none.
            register_in: Operations file of a chain in whose registry the result becomes a challenger.
        """
        from nowcast.training.finetune import domain_recipe

        changes = {
            "name": name,
            "trainer.batch_size": batch_size,
            "trainer.learning_rate": learning_rate,
            "trainer.accelerator": accelerator,
        }
        frames = store or archive
        if frames is None:
            raise ConfigError(f"finetune-{model}: no store to tune on; -p store=STORE.")
        settings = domain_recipe(
            base,
            frames,
            method=method,
            recipe=recipe,
            valid_from=valid_from,
            minutes=minutes,
            steps=steps,
            changes=given(changes),
            overrides=overrides,
        )
        if settings.model.partition(":")[0] != model:
            raise ConfigError(f"{base}: finetune-{model} does not tune {settings.model}.")
        return fit(
            settings, key=f"finetune-{model}", resume=resume, score_windows=score_windows, register_in=register_in
        )

    return finetune


def __getattr__(name: str) -> Flow[Any, str]:
    """Make a flow when Prefect looks up the entry point of its deployment, as ``nowcast.flows.finetune.gs2pm``."""
    from nowcast.models import MODELS, model_class

    if name not in MODELS or len(model_class(name).tunings) < 2:
        known = [model for model in MODELS if len(model_class(model).tunings) > 1]
        raise AttributeError(f"no network {name!r} with several tunings; known: {', '.join(known)}")
    return finetune_flow(name)
