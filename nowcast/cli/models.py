"""Commands of ``nowcast models``: tables of networks and sources, and the checkpoints of a domain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from nowcast.cli.options import AsJson, Domain, Reason
from nowcast.cli.output import console, print_json, table

app = typer.Typer(rich_markup_mode="rich")
LINEAGE = {
    "name": None,
    "state": None,
    "since": 10,
    "digest": 8,
    "model": None,
    "frames": None,
    "step": None,
    "loss": None,
    "base": 8,
}
"""Column of the list of checkpoints -> most characters shown; None: all. --json prints them in full."""


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    readers: Annotated[bool, typer.Option("--readers", help="The sources instead of the networks.")] = False,
    json: AsJson = False,
) -> None:
    """Show the table of networks or, with --readers, of sources; the commands below manage a domain's checkpoints.

    Example: [bold]nowcast models[/]
    """
    if context.invoked_subcommand:
        return
    from nowcast.benchmark.catalogue import networks, sources

    rows = sources() if readers else networks()
    if json:
        print_json(rows)
        return
    if readers:
        console.print(table(rows))
        return
    costs = ("model", "parameters", "published", "unused", "GMACs", "lengths", "grid")
    console.print(table([{name: row[name] for name in costs} for row in rows]))
    of_model = {str(row["model"]).partition(":")[0]: row for row in rows}
    console.print(
        table(
            [
                {"model": name, "paper": row["paper"], "official weights": row["licence"]}
                for name, row in of_model.items()
                if row["paper"]
            ]
        )
    )


@app.command("import")
def import_weights(
    source: Annotated[str, typer.Argument(help="Whose weights: a name of models.official.SOURCES.")],
    file: Annotated[Path, typer.Argument(help=".pt, .pth, .ckpt, .safetensors or .npz; read without running code.")],
    config: Annotated[list[str] | None, typer.Argument(help="What shapes cannot tell: T_in=10 patch_size=4.")] = None,
    out: Annotated[Path | None, typer.Option(help="Checkpoint to write; beside the file by default.")] = None,
    quantity: Annotated[str, typer.Option(help="What the frames are.")] = "intensity",
    step_seconds: Annotated[int, typer.Option(min=1, help="Time between frames.")] = 1,
) -> None:
    """Make a nowcast checkpoint from the weights of an official implementation.

    Example: [bold]nowcast models import predrnn kth_model.ckpt input_length=10 total_length=30[/]
    """
    from nowcast.config import pairs
    from nowcast.registry.convert import import_official

    path = import_official(
        source,
        file,
        out or file.with_suffix(".safetensors"),
        config=pairs(config or ()),
        quantity=quantity,
        cadence_seconds=step_seconds,
    )
    console.print(f"wrote [bold]{path}[/]; use it with [bold]nowcast forecast --model {path}[/]")


@app.command("export")
def export_network(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors checkpoint.")],
    out: Annotated[Path, typer.Argument(help="FILE.onnx, or FILE.pt2 for torch.export.")],
    height: Annotated[int, typer.Option(min=1, help="Rows of the frames.")] = 256,
    width: Annotated[int, typer.Option(min=1, help="Columns of the frames.")] = 256,
) -> None:
    """Export a network for other runtimes, for one frame size; its output is compared with the original's.

    Example: [bold]nowcast models export runs/simvp/best.safetensors simvp.onnx --height 700 --width 700[/]
    """
    from nowcast.registry.checkpoint import load
    from nowcast.registry.convert import export

    console.print(f"wrote [bold]{export(load(checkpoint).network, out, size=(height, width))}[/]")


@app.command("register")
def register_checkpoint(
    file: Annotated[Path, typer.Argument(help="A .safetensors checkpoint.")],
    domain: Domain,
    name: Annotated[str | None, typer.Option(help="By default after its recipe and digest.")] = None,
    reason: Reason = "",
) -> None:
    """Copy a checkpoint into a domain's registry: from the next cycle on it forecasts in the shadow.

    Example: [bold]nowcast models register runs/simvp/best.safetensors --domain operations/knmi.yaml[/]
    """
    from nowcast.operations.cycle import load
    from nowcast.operations.promotion import register

    found = register(load(domain), file, name=name, why=reason)
    console.print(f"registered [bold]{found}[/]; it forecasts in the shadow from the next cycle on")


@app.command("list")
def list_registered(
    domain: Domain,
    history: Annotated[bool, typer.Option("--history", help="The journal: who did what, when and why.")] = False,
    json: AsJson = False,
) -> None:
    """List the registered checkpoints of a domain: champion, challengers, retired ones, and where they come from.

    Example: [bold]nowcast models list --domain operations/knmi.yaml[/]
    """
    from nowcast.operations.cycle import load
    from nowcast.operations.promotion import open_registry

    registry = open_registry(load(domain))
    rows = [event.model_dump(mode="json") for event in registry.events] if history else registry.lineage()
    if json:
        print_json(rows)
    elif not rows:
        console.print(f"{registry.folder}: nothing is registered yet, see [bold]nowcast models register[/]")
    else:
        shown = ["time", "who", "what", "name", "why"] if history else list(LINEAGE)
        shown = [key for key in shown if any(row[key] for row in rows)]
        console.print(table([{key: str(row[key])[: LINEAGE.get(key)] for key in shown} for row in rows]))


@app.command("compare")
def compare_registered(
    domain: Domain,
    challenger: Annotated[str | None, typer.Argument(help="Name or digest; all challengers by default.")] = None,
    against: Annotated[str, typer.Argument(help="Name or digest.")] = "champion",
    json: AsJson = False,
) -> None:
    """Compare challengers with the champion (or one with another) by what they forecast live.

    Example: [bold]nowcast models compare --domain operations/knmi.yaml[/]
    """
    from nowcast.operations.cycle import load
    from nowcast.operations.promotion import compare as assess
    from nowcast.operations.promotion import open_registry

    settings = load(domain)
    names = [challenger] if challenger else open_registry(settings).standing.challengers
    comparisons = [assess(settings, name, against) for name in names]
    if json:
        print_json([{"challenger": found.challenger, **found.facts, "by_lead": found.rows()} for found in comparisons])
        return
    for found in comparisons:
        console.print(str(found), highlight=False, markup=False)
        if rows := found.rows():
            console.print(table(rows))


@app.command("promote")
def promote_challenger(
    name: Annotated[str, typer.Argument(help="Name or digest of a challenger.")],
    domain: Domain,
    force: Annotated[bool, typer.Option("--force", help="Promote whatever the scores are.")] = False,
    reason: Reason = "",
) -> None:
    """Make a challenger the champion, if its live scores are better; products follow at the next cycle.

    Example: [bold]nowcast models promote simvp-3f9a2c --domain operations/knmi.yaml[/]
    """
    from nowcast.operations.cycle import load
    from nowcast.operations.promotion import promote

    why = promote(load(domain), name, force=force, why=reason)
    console.print(f"champion: [bold]{name}[/] ({escape(why)})", highlight=False)


@app.command("rollback")
def roll_back(domain: Domain, reason: Reason = "") -> None:
    """Make the champion before the present one champion again, at once.

    Example: [bold]nowcast models rollback --domain operations/knmi.yaml --reason "too much rain"[/]
    """
    from nowcast.operations.cycle import load
    from nowcast.operations.promotion import open_registry

    registry = open_registry(load(domain))
    digest = registry.rollback(why=reason)
    console.print(f"champion: [bold]{registry.standing.names[digest]}[/]")


@app.command("retire")
def retire_challenger(
    name: Annotated[str, typer.Argument(help="Name or digest of a challenger.")], domain: Domain, reason: Reason = ""
) -> None:
    """End the shadow forecasts of a challenger; its file stays, so that old runs can be made again.

    Example: [bold]nowcast models retire simvp-3f9a2c --domain operations/knmi.yaml[/]
    """
    from nowcast.operations.cycle import load
    from nowcast.operations.promotion import open_registry

    registry = open_registry(load(domain))
    registry.retire(registry.find(name), why=reason)
    console.print(f"retired: [bold]{name}[/]")
