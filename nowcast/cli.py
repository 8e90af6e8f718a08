"""The command line. Every command is a thin door to a function; heavy imports wait inside."""

from __future__ import annotations

import json as jsonlib
import logging
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="Precipitation nowcasting: radar files in, verified forecasts and maps out.",
)
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
"""Columns of the list of checkpoints, and how much of them fits a screen; --json has all."""
console = Console()
errors = Console(stderr=True)

StorePath = Annotated[str, typer.Option("--store", help="Cube store: a folder or s3://bucket/prefix.")]
ForecastPath = Annotated[str, typer.Option("--forecasts", help="Forecast store.")]
ScorePath = Annotated[str | None, typer.Option("--scores", help="Score store; next to the forecasts by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Domain = Annotated[str, typer.Option("--domain", envvar="NOWCAST_DOMAIN", help="Operations YAML with a registry.")]
Reason = Annotated[str, typer.Option("--reason", help="Kept in the journal.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides: key=value, dotted keys.")]


def main() -> None:
    """Runs a command; a mistake of the user's ends in one sentence, not in a traceback."""
    from nowcast.config import ConfigError, TrainingError
    from nowcast.core.cube import BadInput
    from nowcast.store import StoreError

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        app()
    except (ConfigError, TrainingError, BadInput, StoreError, ModuleNotFoundError, ValueError, OSError) as error:
        errors.print(f"[red]{type(error).__name__}[/]: {escape(str(error))}", highlight=False, markup=True)
        raise SystemExit(2) from None


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to work.")] = Path("demo"),
    serve: Annotated[bool, typer.Option(help="Serve the page at the end.")] = True,
    port: Annotated[int, typer.Option(help="Port of the page.")] = 8000,
) -> None:
    """Three hours of real radar through the whole chain: files, forecasts, scores, maps, page.

    Example: [bold]nowcast demo --no-serve[/]
    """
    from nowcast.operations.demo import run

    with _bar() as progress:
        result = run(folder, progress=progress)
    console.print(_score_table(result.scores))
    _print_report(result.lines)
    console.print(f"Maps, loop and charts: [bold]{result.pictures}[/]   NetCDF: [bold]{result.netcdf}[/]")
    console.print(f"Page: [bold]{result.site / 'index.html'}[/], served with [bold]nowcast serve {result.site}[/]")
    if serve:
        _serve(result.site, port)


@app.command()
def ingest(
    reader: Annotated[str, typer.Argument(help="Name of the source, see nowcast models --readers; auto finds it.")],
    sources: Annotated[list[str], typer.Argument(help="Files, folders or globs.")],
    store: StorePath,
    workers: Annotated[int, typer.Option(min=0, help="Processes of a Dask cluster on this machine.")] = 0,
    scheduler: Annotated[str | None, typer.Option(help="A Dask cluster that runs already: tcp://host:port.")] = None,
    quality: Annotated[str | None, typer.Option(help="YAML of quality settings.")] = None,
    clip: Annotated[list[str] | None, typer.Option(help="quantity=value: larger ones are set to it.")] = None,
    json: AsJson = False,
) -> None:
    """Brings radar files, benchmarks or videos into a store; known ones are skipped, bad ones named.

    Example: [bold]nowcast ingest sevir /data/sevir --store var/sevir --workers 8[/]
    """
    from nowcast.config import QualitySettings, load, override
    from nowcast.ingestion.run import ingest as take

    changes = [f"clip.{change}" for change in clip or ()]
    settings = load(QualitySettings, quality, changes) if quality else override(QualitySettings, changes)
    with _bar() as progress:
        summary = take(
            reader, sources, store, settings=settings, workers=workers, scheduler=scheduler, progress=progress
        )
    if json:
        _print_json(vars(summary))
    else:
        console.print(
            f"taken {summary.taken}, known {summary.known}, revised {summary.revised}, "
            f"refused {len(summary.refused)}; newest {summary.newest or 'none'}"
        )
        for name, count in summary.flagged.items():
            console.print(f"  [blue]{name.replace('_', ' ')}[/] {count} frames", highlight=False)
        for sentence in summary.refused:
            console.print(f"  [yellow]refused[/] {escape(sentence)}", highlight=False)
    if summary.refused and not (summary.taken or summary.known or summary.revised):
        raise typer.Exit(1)


@app.command()
def inspect(
    source: Annotated[Path, typer.Argument(help="File or folder.")],
    reader: Annotated[str | None, typer.Option(help="Name of the source; found by default.")] = None,
    picture: Annotated[Path, typer.Option(help="Where the quick look goes.")] = Path("quicklook.png"),
    json: AsJson = False,
) -> None:
    """What a file is: its reader, what would be stored, what is wrong with it, and a picture.

    Example: [bold]nowcast inspect RAD_NL25_RAP_5min_201008260000.h5[/]
    """
    from nowcast.ingestion.inspect import inspect as look
    from nowcast.ingestion.inspect import quick_look

    found = look(source, reader=reader)
    picture.write_bytes(quick_look(found))
    if json:
        _print_json({"reader": found.reader, **found.facts, "picture": picture})
        return
    _print_facts(found.facts)
    command = f"nowcast ingest {found.reader} {escape(str(source))} --store STORE"
    console.print(f"Picture: [bold]{picture}[/]; take it in with [bold]{command}[/]")


@app.command()
def show(store: Annotated[str, typer.Argument(help="Any store.")], json: AsJson = False) -> None:
    """What a store holds: frames, variables, grid, span, cadence, gaps, size, last commits.

    Example: [bold]nowcast show var/frames --json[/]
    """
    from nowcast.store import describe

    facts = describe(store)
    if json:
        _print_json(facts)
        return
    _print_facts(facts)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped one.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on where a run of this name stopped.")] = True,
    register_in: Annotated[
        str | None, typer.Option(help="Operations YAML: the result becomes a challenger there.")
    ] = None,
) -> None:
    """Trains a network from a recipe.

    Example: [bold]nowcast train training/convlstm-debug.yaml trainer.epochs=2[/]
    """
    from nowcast.config import Recipe, load

    settings = load(Recipe, recipe, overrides or ())
    from nowcast.training.run import train as fit

    path = fit(settings, resume=resume)
    console.print(f"Best network: [bold]{path}[/]; use it with [bold]nowcast forecast --model {path}[/]")
    if register_in:
        _register(path, register_in)


@app.command()
def tune(
    base: Annotated[str, typer.Argument(help="Checkpoint, or a prompt file over one.")],
    store: StorePath,
    method: Annotated[str, typer.Option(help="vp: the prompt alone; fp: all weights.")] = "vp",
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Tuning ends after this time.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Or after so many steps.")] = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on where a run of this name stopped.")] = True,
) -> None:
    """Fits a pretrained network to the frames of a store, the newest fifth of which it is validated on.

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


@app.command()
def benchmark(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a shipped one.")],
    overrides: Overrides = None,
) -> None:
    """Trains networks alike and compares them on held-out frames: one table, one figure.

    Example: [bold]nowcast benchmark benchmarks/radar-debug.yaml seeds=[0,1][/]
    """
    from nowcast.benchmark.run import benchmark as compare
    from nowcast.config import Benchmark, load

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the training under way must end with us
    with _bar() as progress:
        table = compare(load(Benchmark, config, overrides or ()), progress=progress)
    print(table.read_text())
    console.print(f"All numbers and the figure: [bold]{table.parent}[/]")


@app.command()
def forecast(
    store: StorePath,
    model: Annotated[str, typer.Option(help="Name in the model table, or a checkpoint file.")],
    out: Annotated[str, typer.Option(help="FILE.nc, or a forecast store.")],
    name: Annotated[str | None, typer.Option(help="Name in the store; the model's, or its run's, by default.")] = None,
    time: Annotated[datetime | None, typer.Option(help="Reference time, UTC; the newest frame by default.")] = None,
    leads: Annotated[int, typer.Option(min=1, help="Frames to forecast.")] = 12,
) -> None:
    """Forecasts from the newest frame of a store, or from the one at --time.

    Example: [bold]nowcast forecast --store var/frames --model extrapolation --out now.nc[/]
    """
    from nowcast.config import Product
    from nowcast.forecasting.run import forecast as make
    from nowcast.forecasting.run import issue, write_netcdf
    from nowcast.store import open_store

    moment = time.replace(tzinfo=UTC) if time else None
    if Path(out).suffix == ".nc":
        console.print(
            f"wrote [bold]{write_netcdf(make(open_store(store), model, time=moment, leads=leads), Path(out))}[/]"
        )
        return
    product = Product(name=name or _product_name(Path(model)), model=model)
    lines = issue(store, out, [product], fallback=(), leads=leads, time=moment)
    _print_report(lines or [f"{product.name}: this forecast is in {out} already"])


@app.command()
def verify(
    store: StorePath,
    forecasts: ForecastPath,
    scores: ScorePath = None,
    lpips: Annotated[bool, typer.Option("--lpips", help="The perceptual distance too; needs its weights.")] = False,
    json: AsJson = False,
) -> None:
    """Scores the forecasts whose valid time has been observed; prints them pooled.

    Example: [bold]nowcast verify --store var/frames --forecasts var/forecasts[/]
    """
    from nowcast.store import open_store
    from nowcast.verification.run import verify as score
    from nowcast.verification.tables import table

    path = scores or f"{forecasts.rstrip('/')}-scores"
    with _bar() as progress:
        count = score(store, forecasts, path, lpips=lpips, progress=progress)
    sums = open_store(path).load()
    if json:
        _print_json({"scored": count, "scores": path, "table": table(sums), "by_lead": table(sums, by_lead=True)})
        return
    console.print(_score_table(sums))
    console.print(_score_table(sums, by_lead=True))
    console.print(f"{count} forecast frames scored now; sums in [bold]{path}[/]")


@app.command()
def publish(
    store: StorePath,
    forecasts: ForecastPath,
    site: Annotated[Path, typer.Option(help="Folder of the page.")],
    scores: ScorePath = None,
    replay: Annotated[bool, typer.Option(help="Archived data: the page's clock stands at the newest frame.")] = False,
) -> None:
    """Writes the page and its data.

    Example: [bold]nowcast publish --store var/frames --forecasts var/forecasts --site var/site[/]
    """
    from nowcast.store import exists, open_store
    from nowcast.web.publish import publish as write

    path = scores or f"{forecasts.rstrip('/')}-scores"
    sums = open_store(path) if exists(path) else None
    manifest = write(open_store(store), open_store(forecasts), sums, site, replay=replay)
    console.print(f"published [bold]{manifest}[/]; look at it with [bold]nowcast serve {site}[/]")


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="Folder of the page.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 8000,
) -> None:
    """Serves a published page.

    Example: [bold]nowcast serve var/site[/]
    """
    _serve(folder, port, host)


@app.command()
def cycle(
    config: Annotated[str, typer.Argument(help="Operations YAML.")],
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """One operational cycle without Prefect: ingest, forecast, verify, publish.

    Example: [bold]nowcast cycle operations/knmi.yaml feed.source=/data/knmi[/]
    """
    from nowcast.operations.cycle import cycle as once
    from nowcast.operations.cycle import load

    with _bar() as progress:
        report = once(load(config, overrides or ()), progress=progress)
    if json:
        _print_json(vars(report) | {"idle": report.idle})
        return
    frames = f"newest {report.newest}: taken {report.taken}, revised {report.revised}, refused {len(report.refused)}"
    done = f"{report.scored} forecast frames scored, page {report.published}, {report.seconds:.1f} s"
    shadow = [f"in the shadow: {line}" for line in report.shadowed]
    _print_report([frames, *report.refused, *report.issued, done, *shadow])


@app.command()
def up(
    config: Annotated[str, typer.Argument(help="Operations YAML.")],
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Address that server and page listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the Prefect server.")] = 4200,
    page_port: Annotated[int, typer.Option(help="Port of the page.")] = 8000,
) -> None:
    """Prefect server, all deployments and the page, in one command.

    Example: [bold]nowcast up operations/knmi.yaml feed.source=/data/knmi[/]
    """
    from nowcast.flows.up import up as start

    start(config, overrides=overrides or (), host=host, port=port, page_port=page_port)


@app.command("run")
def start(
    flow: Annotated[str, typer.Argument(help="cycle, verify, backfill, train-convlstm, ...")],
    parameters: Annotated[list[str] | None, typer.Argument(help="key=value (YAML values).")] = None,
    watch: Annotated[bool, typer.Option(help="Wait for the end; exit 1 if it fails.")] = False,
) -> None:
    """Starts a flow on the running Prefect server.

    Example: [bold]nowcast run train-convlstm --watch[/]
    """
    from nowcast.flows.up import run_deployment_by_name

    run = run_deployment_by_name(flow, _pairs(parameters), watch=watch)
    console.print(f"{flow}: run [bold]{run.name}[/] is {run.state.name if run.state else 'scheduled'}")


models_app = typer.Typer(rich_markup_mode="rich")
app.add_typer(models_app, name="models")


@models_app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    readers: Annotated[bool, typer.Option("--readers", help="The sources instead of the networks.")] = False,
    json: AsJson = False,
) -> None:
    """The table of networks (or, with --readers, of sources); the commands below keep the checkpoints of a domain.

    Example: [bold]nowcast models[/]
    """
    if context.invoked_subcommand:
        return
    from nowcast.benchmark.catalogue import networks, sources

    rows = sources() if readers else networks()
    if json:
        _print_json(rows)
        return
    if readers:
        console.print(_table(rows))
        return
    costs = ("model", "parameters", "published", "unused", "GMACs", "lengths", "grid")
    console.print(_table([{name: row[name] for name in costs} for row in rows]))
    of_model = {str(row["model"]).partition(":")[0]: row for row in rows}
    console.print(
        _table(
            [
                {"model": name, "paper": row["paper"], "official weights": row["licence"]}
                for name, row in of_model.items()
                if row["paper"]
            ]
        )
    )


@models_app.command("import")
def import_weights(
    source: Annotated[str, typer.Argument(help="Whose weights: a name of models.official.SOURCES.")],
    file: Annotated[Path, typer.Argument(help=".pt, .pth, .ckpt, .safetensors or .npz; read without running code.")],
    config: Annotated[list[str] | None, typer.Argument(help="What shapes cannot tell: T_in=10 patch_size=4.")] = None,
    out: Annotated[Path | None, typer.Option(help="Checkpoint to write; beside the file by default.")] = None,
    quantity: Annotated[str, typer.Option(help="What the frames are.")] = "intensity",
    step_seconds: Annotated[int, typer.Option(min=1, help="Time between frames.")] = 1,
) -> None:
    """Makes a checkpoint of ours from the weights of an official implementation.

    Example: [bold]nowcast models import predrnn kth_model.ckpt input_length=10 total_length=30[/]
    """
    from nowcast.registry.convert import import_official

    path = import_official(
        source,
        file,
        out or file.with_suffix(".safetensors"),
        config=_pairs(config),
        quantity=quantity,
        cadence_seconds=step_seconds,
    )
    console.print(f"wrote [bold]{path}[/]; use it with [bold]nowcast forecast --model {path}[/]")


@models_app.command("export")
def export_network(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors checkpoint.")],
    out: Annotated[Path, typer.Argument(help="FILE.onnx, or FILE.pt2 for torch.export.")],
    height: Annotated[int, typer.Option(min=1, help="Rows of the frames.")] = 256,
    width: Annotated[int, typer.Option(min=1, help="Columns of the frames.")] = 256,
) -> None:
    """Writes a network for other runtimes, for one size of frames, checked against ours.

    Example: [bold]nowcast models export runs/simvp/best.safetensors simvp.onnx --height 700 --width 700[/]
    """
    from nowcast.registry.checkpoint import load
    from nowcast.registry.convert import export

    console.print(f"wrote [bold]{export(load(checkpoint).network, out, size=(height, width))}[/]")


@models_app.command("register")
def register_checkpoint(
    file: Annotated[Path, typer.Argument(help="A .safetensors checkpoint.")],
    domain: Domain,
    name: Annotated[str | None, typer.Option(help="By default after its recipe and digest.")] = None,
    reason: Reason = "",
) -> None:
    """Copies a checkpoint into a domain's registry: from the next cycle on it forecasts in the shadow.

    Example: [bold]nowcast models register runs/simvp/best.safetensors --domain operations/knmi.yaml[/]
    """
    _register(file, domain, name=name, why=reason)


@models_app.command("list")
def list_registered(
    domain: Domain,
    history: Annotated[bool, typer.Option("--history", help="The journal: who did what, when and why.")] = False,
    json: AsJson = False,
) -> None:
    """The registered checkpoints of a domain: champion, challengers, retired ones, and where they come from.

    Example: [bold]nowcast models list --domain operations/knmi.yaml[/]
    """
    from nowcast.operations.cycle import load
    from nowcast.operations.promotion import registry

    shelf = registry(load(domain))
    rows = [event.model_dump(mode="json") for event in shelf.events] if history else shelf.lineage()
    if json:
        _print_json(rows)
    elif not rows:
        console.print(f"{shelf.folder}: nothing is registered yet, see [bold]nowcast models register[/]")
    else:
        shown = ["time", "who", "what", "name", "why"] if history else list(LINEAGE)
        shown = [key for key in shown if any(row[key] for row in rows)]
        console.print(_table([{key: str(row[key])[: LINEAGE.get(key)] for key in shown} for row in rows]))


@models_app.command("compare")
def compare_registered(
    domain: Domain,
    challenger: Annotated[str | None, typer.Argument(help="Name or digest; all challengers by default.")] = None,
    against: Annotated[str, typer.Argument(help="The same.")] = "champion",
    json: AsJson = False,
) -> None:
    """Challengers against the champion (or one against another) by what they forecast live.

    Example: [bold]nowcast models compare --domain operations/knmi.yaml[/]
    """
    from nowcast.operations.cycle import load
    from nowcast.operations.promotion import compare as judge
    from nowcast.operations.promotion import registry

    settings = load(domain)
    names = [challenger] if challenger else registry(settings).standing.challengers
    verdicts = [judge(settings, name, against) for name in names]
    if json:
        _print_json([{"challenger": found.challenger, **found.facts, "by_lead": found.rows()} for found in verdicts])
        return
    for found in verdicts:
        console.print(str(found), highlight=False, markup=False)
        if rows := found.rows():
            console.print(_table(rows))


@models_app.command("promote")
def promote_challenger(
    name: Annotated[str, typer.Argument(help="Name or digest of a challenger.")],
    domain: Domain,
    force: Annotated[bool, typer.Option("--force", help="Whatever the scores say.")] = False,
    reason: Reason = "",
) -> None:
    """Makes a challenger the champion, if its live scores are better; products follow at the next cycle.

    Example: [bold]nowcast models promote simvp-3f9a2c --domain operations/knmi.yaml[/]
    """
    from nowcast.operations.cycle import load
    from nowcast.operations.promotion import promote

    why = promote(load(domain), name, force=force, why=reason)
    console.print(f"champion: [bold]{name}[/] ({escape(why)})", highlight=False)


@models_app.command("rollback")
def roll_back(domain: Domain, reason: Reason = "") -> None:
    """Makes the champion before the present one champion again, at once.

    Example: [bold]nowcast models rollback --domain operations/knmi.yaml --reason "too much rain"[/]
    """
    from nowcast.operations.cycle import load
    from nowcast.operations.promotion import registry

    shelf = registry(load(domain))
    digest = shelf.rollback(why=reason)
    console.print(f"champion: [bold]{shelf.standing.names[digest]}[/]")


@models_app.command("retire")
def retire_challenger(
    name: Annotated[str, typer.Argument(help="Name or digest of a challenger.")], domain: Domain, reason: Reason = ""
) -> None:
    """Ends the shadow forecasts of a challenger; its file stays, so that old runs can be made again.

    Example: [bold]nowcast models retire simvp-3f9a2c --domain operations/knmi.yaml[/]
    """
    from nowcast.operations.cycle import load
    from nowcast.operations.promotion import registry

    shelf = registry(load(domain))
    shelf.retire(shelf.find(name), why=reason)
    console.print(f"retired: [bold]{name}[/]")


@app.command()
def doctor(
    config: Annotated[str | None, typer.Argument(help="Operations YAML to check as well.")] = None,
    json: AsJson = False,
) -> None:
    """Versions, GPU, disk, settings, store health, and what to fix.

    Example: [bold]nowcast doctor operations/knmi.yaml[/]
    """
    from nowcast.operations.doctor import examine

    findings = examine(config)
    if json:
        _print_json([vars(finding) for finding in findings])
    else:
        table = Table("", "what", "found", "what to do", box=None)
        for finding in findings:
            mark = "[green]ok[/]" if finding.ok else "[red]fix[/]"
            table.add_row(mark, finding.what, finding.found, "" if finding.ok else finding.remedy)
        console.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _register(file: Path, domain: str, *, name: str | None = None, why: str = "") -> None:
    from nowcast.operations.cycle import load
    from nowcast.operations.promotion import register

    found = register(load(domain), file, name=name, why=why)
    console.print(f"registered [bold]{found}[/]; it forecasts in the shadow from the next cycle on")


def _pairs(words: list[str] | None) -> dict[str, Any]:
    """``key=value`` words, the values as YAML."""
    import yaml

    return {key: yaml.safe_load(value) for key, value in (word.partition("=")[::2] for word in words or ())}


def _product_name(model: Path) -> str:
    """Every training exports ``best`` and ``last``: those are called after their run."""
    stem = model.parent.name if model.stem in ("best", "last") else model.stem
    return re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_") or "model"


@contextmanager
def _bar() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar; does nothing where nobody watches."""
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as bars:
        task = bars.add_task("", total=None, rate="")

        def advance(done: int, total: int, name: str) -> None:
            speed = bars.tasks[0].speed
            rate = f"{speed:.1f}/s" if speed else ""
            bars.update(task, completed=done, total=total, description=name[:34], rate=rate)

        yield advance


def _table(rows: Sequence[Mapping[str, object]]) -> Table:
    first, *others = rows[0]
    table = Table(Column(first, no_wrap=True), *others, box=None)
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    return table


def _print_facts(facts: Mapping[str, object]) -> None:
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        lines = value if isinstance(value, list) else [value]
        table.add_row(f"[bold]{key}[/]", "\n".join(escape(str(line)) for line in lines) or "none")
    console.print(table)


def _serve(folder: Path, port: int, host: str = "127.0.0.1") -> None:
    from nowcast.web.serve import serve as run_server

    console.print(f"Serving [bold]http://{host}:{port}[/]  (Ctrl-C ends it)")
    run_server(folder, host=host, port=port)


def _score_table(sums: Any, *, by_lead: bool = False) -> Table:
    """Pooled scores: sums over all runs (and leads) first, then the ratio."""
    from nowcast.core.units import UNIT_SIGNS
    from nowcast.verification.tables import table

    rows = [
        {key: value for key, value in row.items() if key not in ("MAE", "frames")}
        for row in table(sums, by_lead=by_lead)
    ]
    unit = sums["threshold"].attrs.get("units", "")
    rule = (
        "sums over runs"
        + ("" if by_lead else " and lead times")
        + f", then ratios; thresholds in {UNIT_SIGNS.get(unit, unit)}"
    )
    view = Table(title=f"Scores ({rule})", title_justify="left")
    for name in rows[0] if rows else ():
        view.add_column(name, no_wrap=True, justify="left" if name == "model" else "right")
    for row in rows:
        view.add_row(*(_cell(value) for value in row.values()))
    return view


def _cell(value: object) -> str:
    """Ratios with three digits, counts of pixels in thousands or millions."""
    if isinstance(value, float):
        return "-" if value != value else f"{value:.3f}"
    if isinstance(value, int) and value >= 10_000:
        return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value / 1e3:.0f}k"
    return str(value)


def _print_report(lines: list[str]) -> None:
    for line in lines:
        console.print(line, highlight=False)


def _print_json(value: object) -> None:
    print(jsonlib.dumps(value, default=str, indent=1))


if __name__ == "__main__":
    main()
