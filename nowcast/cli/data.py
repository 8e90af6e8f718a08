"""Commands that bring radar files in and look at them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from nowcast.cli.options import AsJson, StorePath
from nowcast.cli.output import console, print_facts, print_json, progress_bar

if TYPE_CHECKING:
    from nowcast.ingestion.append import Summary


def ingest(
    reader: Annotated[str, typer.Argument(help="Name of the source, see nowcast models --readers; auto finds it.")],
    sources: Annotated[list[str], typer.Argument(help="Files, folders or globs.")],
    store: StorePath,
    workers: Annotated[int, typer.Option(min=0, help="Processes of a Dask cluster on this machine.")] = 0,
    scheduler: Annotated[str | None, typer.Option(help="A Dask cluster that runs already: tcp://host:port.")] = None,
    quality: Annotated[str | None, typer.Option(help="YAML of quality settings.")] = None,
    product: Annotated[str, typer.Option(help="Which one of several to take: RW, 'sum of 60 min'.")] = "",
    cadence: Annotated[int | None, typer.Option(min=1, help="Seconds between frames; else found from them.")] = None,
    clip: Annotated[list[str] | None, typer.Option(help="quantity=value: larger ones are set to it.")] = None,
    json: AsJson = False,
) -> None:
    """Bring radar files, benchmarks or videos into a store; skip known ones, name bad ones.

    Example: [bold]nowcast ingest sevir /data/sevir --store var/sevir --workers 8[/]
    """
    from nowcast.config import QualitySettings, load, override
    from nowcast.ingestion.run import ingest as take

    changes = [f"clip.{change}" for change in clip or ()]
    settings = load(QualitySettings, quality, changes) if quality else override(QualitySettings, changes)
    with progress_bar() as progress:
        summary = take(
            reader,
            sources,
            store,
            settings=settings,
            product=product,
            cadence=cadence,
            workers=workers,
            scheduler=scheduler,
            progress=progress,
        )
    if json:
        print_json(vars(summary))
    else:
        _print_summary(summary)
    if summary.failure or ((summary.refused or summary.remembered) and not (summary.taken or summary.known)):
        raise typer.Exit(1)


def _print_summary(summary: Summary) -> None:
    """Print what became of the files."""
    others = {"refused before": summary.remembered, "of another product": summary.left_out}
    console.print(
        f"taken {summary.taken}, known {summary.known}, revised {summary.revised}, refused {len(summary.refused)}"
        + "".join(f", {name} {count}" for name, count in others.items() if count)
        + f"; newest {summary.newest or 'none'}"
    )
    for name, count in summary.flagged.items():
        console.print(f"  [blue]{name.replace('_', ' ')}[/] {count} frames", highlight=False)
    for sentence in summary.contradictions:
        console.print(f"  [yellow]step[/] {escape(sentence)}", highlight=False)
    for sentence in summary.refused:
        console.print(f"  [yellow]refused[/] {escape(sentence)}", highlight=False)
    if not (summary.taken or summary.known or summary.refused) and summary.last_refusal:
        console.print(f"  [yellow]refused before[/] {escape(summary.last_refusal)}", highlight=False)


def inspect(
    source: Annotated[Path, typer.Argument(help="File or folder.")],
    reader: Annotated[str | None, typer.Option(help="Name of the source; found by default.")] = None,
    picture: Annotated[Path, typer.Option(help="Where the quick look goes.")] = Path("quicklook.png"),
    json: AsJson = False,
) -> None:
    """Describe a file: its reader, what would be stored, what is wrong with it; draw a picture.

    Example: [bold]nowcast inspect RAD_NL25_RAP_5min_201008260000.h5[/]
    """
    from nowcast.ingestion.inspect import inspect as look
    from nowcast.ingestion.inspect import quick_look

    found = look(source, reader=reader)
    picture.write_bytes(quick_look(found))
    if json:
        print_json({"reader": found.reader, **found.facts, "picture": picture})
        return
    print_facts(found.facts)
    command = f"nowcast ingest {found.reader} {escape(str(source))} --store STORE"
    console.print(f"Picture: [bold]{picture}[/]; take it in with [bold]{command}[/]")


def show(store: Annotated[str, typer.Argument(help="Any store.")], json: AsJson = False) -> None:
    """Describe a store: frames, variables, grid, span, cadence, gaps, size, last commits.

    Example: [bold]nowcast show var/frames --json[/]
    """
    from nowcast.store import Store

    facts = Store(store).describe()
    if json:
        print_json(facts)
        return
    print_facts(facts)
