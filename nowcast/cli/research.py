"""Commands that train networks and compare them."""

from __future__ import annotations

import signal
from pathlib import Path
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


def test(
    model: Annotated[str, typer.Argument(help="Checkpoint file, or the name of a model without weights.")],
    store: StorePath,
    out: Annotated[Path, typer.Option(help="Folder to write; it must not be there yet.")],
    split: Annotated[str | None, typer.Option(help="Only this split of the store.")] = None,
    sequences: Annotated[list[str] | None, typer.Option(help="Only sequences like this: 'test/boxing/*'.")] = None,
    frames: Annotated[
        list[str] | None, typer.Option(help="npy (default), png, gif, strip or store; repeat it.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Clips that pictures are made of.")] = 10,
    inputs: Annotated[int | None, typer.Option(min=1, help="Frames before the forecast; what the model takes.")] = None,
    leads: Annotated[int | None, typer.Option(min=1, help="Frames to forecast; as trained by default.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Frames between two windows of a sequence.")] = None,
    protocol: Annotated[list[str] | None, typer.Option(help="Score as a published table too: kth, openstl.")] = None,
    lpips: Annotated[bool, typer.Option("--lpips", help="The perceptual distance too; needs its weights.")] = False,
) -> None:
    """Forecast a test set, keep the frames as arrays, pictures or a store, and score them.

    Example: [bold]nowcast test runs/simvp/best.safetensors --store var/kth --split test --out kth --frames gif[/]
    """
    from nowcast.benchmark.kept import keep

    with progress_bar() as progress:
        folder = keep(
            model,
            store,
            out,
            split=split,
            sequences=sequences or (),
            frames=frames or ("npy",),
            pictures=pictures,
            inputs=inputs,
            leads=leads,
            stride=stride,
            protocols=protocol or (),
            lpips=lpips,
            progress=progress,
        )
    print((folder / "scores.md").read_text())
    console.print(f"Frames and scores: [bold]{folder}[/]")


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
