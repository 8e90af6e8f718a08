"""Commands that train networks and compare them."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from nowcast.cli.models import register_checkpoint
from nowcast.cli.options import Overrides, Resume, StorePath, TrainStore
from nowcast.cli.output import console, progress_bar


def train(
    recipe: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped one.")],
    overrides: Overrides = None,
    store: TrainStore = None,
    resume: Resume = True,
    register_in: Annotated[
        str | None, typer.Option(help="Operations YAML: the result becomes a challenger there.")
    ] = None,
) -> None:
    """Train a network from a recipe.

    Example: [bold]nowcast train training/convlstm-debug.yaml trainer.epochs=2[/]
    """
    from nowcast.config import Recipe, load
    from nowcast.data.archive import check_there, on_archive

    settings = load(Recipe, recipe, overrides or ())
    settings = on_archive(settings, store) if store else settings
    check_there(settings, recipe)
    from nowcast.training.run import train as fit

    path = fit(settings, resume=resume)
    console.print(f"Best network: [bold]{path}[/]; use it with [bold]nowcast forecast --model {path}[/]")
    if register_in:
        register_checkpoint(path, register_in)


def tune(
    base: Annotated[str, typer.Argument(help="Checkpoint, or a prompt file over one.")],
    store: StorePath,
    method: Annotated[str, typer.Option(help="vp: the prompt alone; fp: all weights.")] = "vp",
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Tuning ends after this time.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Or after so many steps.")] = None,
    overrides: Overrides = None,
    resume: Resume = True,
) -> None:
    """Fit a pretrained network to the frames of a store.

    It is validated on the split valid of the store; where there is none on the last fifth of the clips to train on, or
    of a feed on the newest fifth of the frames.

    Example: [bold]nowcast tune runs/gs2pm-pretrain/best.safetensors --store var/fmi/frames --minutes 30[/]
    """
    from nowcast.training.finetune import domain_recipe

    settings = domain_recipe(base, store, method=method, minutes=minutes, steps=steps, overrides=tuple(overrides or ()))
    from nowcast.benchmark.report import scorecard
    from nowcast.training.run import train as fit

    path = fit(settings, resume=resume)
    page = scorecard(settings, path)
    if page:
        print(page.read_text())
    console.print(f"Tuned: [bold]{path}[/]; use it with [bold]nowcast forecast --model {path}[/]")


def benchmark(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped one.")],
    overrides: Overrides = None,
    store: TrainStore = None,
) -> None:
    """Train networks under one protocol and compare them on held-out frames: one table, one figure.

    Example: [bold]nowcast benchmark benchmarks/radar-debug.yaml seeds=[0,1][/]
    """
    from nowcast.benchmark.run import benchmark as compare
    from nowcast.config import Benchmark, load
    from nowcast.data.archive import check_there, on_archive

    settings = load(Benchmark, config, overrides or ())
    settings = on_archive(settings, store) if store else settings
    check_there(settings, config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the running training is ended too
    with progress_bar() as progress:
        table = compare(settings, progress=progress)
    print(table.read_text())
    console.print(f"All numbers and the figure: [bold]{table.parent}[/]")
