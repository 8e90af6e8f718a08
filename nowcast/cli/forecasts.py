"""Commands from a store of frames to the page: forecast, score, publish, serve."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from nowcast.cli.options import AsJson, ForecastPath, ScorePath, StorePath
from nowcast.cli.output import console, print_json, print_report, progress_bar, score_table


def forecast(
    store: StorePath,
    model: Annotated[str, typer.Option(help="Name in the model table, or a checkpoint file.")],
    out: Annotated[str, typer.Option(help="FILE.nc, or a forecast store.")],
    name: Annotated[str | None, typer.Option(help="Name in the store; the model's, or its run's, by default.")] = None,
    time: Annotated[datetime | None, typer.Option(help="Reference time, UTC; the newest frame by default.")] = None,
    leads: Annotated[int, typer.Option(min=1, help="Frames to forecast.")] = 12,
) -> None:
    """Forecast from the newest frame of a store, or from the one at --time.

    Example: [bold]nowcast forecast --store var/frames --model extrapolation --out now.nc[/]
    """
    from nowcast.config import Product, override, words
    from nowcast.forecasting.fallback import issue
    from nowcast.forecasting.netcdf import write_netcdf
    from nowcast.forecasting.run import forecast as make
    from nowcast.store import open_store

    moment = time.replace(tzinfo=UTC) if time else None
    if Path(out).suffix == ".nc":
        console.print(
            f"wrote [bold]{write_netcdf(make(open_store(store), model, time=moment, leads=leads), Path(out))}[/]"
        )
        return
    product = override(Product, words({"name": name or _product_name(Path(model)), "model": model}))
    lines = issue(store, out, [product], fallback=(), leads=leads, time=moment)
    print_report(lines or [f"{product.name}: this forecast is in {out} already"])


def verify(
    store: StorePath,
    forecasts: ForecastPath,
    scores: ScorePath = None,
    lpips: Annotated[bool, typer.Option("--lpips", help="The perceptual distance too; needs its weights.")] = False,
    json: AsJson = False,
) -> None:
    """Score the forecasts whose valid time has been observed, and print them pooled.

    Example: [bold]nowcast verify --store var/frames --forecasts var/forecasts[/]
    """
    from nowcast.store import open_store
    from nowcast.verification.run import verify as score
    from nowcast.verification.tables import table

    path = scores or f"{forecasts.rstrip('/')}-scores"
    with progress_bar() as progress:
        count = score(store, forecasts, path, lpips=lpips, progress=progress)
    sums = open_store(path).load()
    if json:
        print_json({"scored": count, "scores": path, "table": table(sums), "by_lead": table(sums, by_lead=True)})
        return
    console.print(score_table(sums))
    console.print(score_table(sums, by_lead=True))
    console.print(f"{count} forecast frames scored now; sums in [bold]{path}[/]")


def publish(
    store: StorePath,
    forecasts: ForecastPath,
    site: Annotated[Path, typer.Option(help="Folder of the page.")],
    scores: ScorePath = None,
    replay: Annotated[bool, typer.Option(help="Archived data: the page's clock stands at the newest frame.")] = False,
) -> None:
    """Write the page and its data.

    Example: [bold]nowcast publish --store var/frames --forecasts var/forecasts --site var/site[/]
    """
    from nowcast.store import Store, open_store
    from nowcast.web.publish import publish as write

    path = scores or f"{forecasts.rstrip('/')}-scores"
    sums = open_store(path) if Store(path).exists() else None
    manifest = write(open_store(store), open_store(forecasts), sums, site, replay=replay)
    console.print(f"published [bold]{manifest}[/]; look at it with [bold]nowcast serve {site}[/]")


def serve(
    folder: Annotated[Path, typer.Argument(help="Folder of the page.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 8000,
) -> None:
    """Serve a published page.

    Example: [bold]nowcast serve var/site[/]
    """
    from nowcast.web.serve import serve as run_server

    console.print(f"Serving [bold]http://{host}:{port}[/]  (Ctrl-C ends it)")
    run_server(folder, host=host, port=port)


def _product_name(model: Path) -> str:
    """Name a product after its checkpoint, or after the run of ``best`` and ``last``, which every training exports."""
    stem = model.parent.name if model.stem in ("best", "last") else model.stem
    return re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_") or "model"
