"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

StorePath = Annotated[str, typer.Option("--store", help="Cube store: a folder or s3://bucket/prefix.")]
TrainStore = Annotated[
    str | None,
    typer.Option("--store", help="Cube store in place of those of the file; its newest frames are held out."),
]
ForecastPath = Annotated[str, typer.Option("--forecasts", help="Forecast store.")]
ScorePath = Annotated[str | None, typer.Option("--scores", help="Score store; next to the forecasts by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Domain = Annotated[str, typer.Option("--domain", envvar="NOWCAST_DOMAIN", help="Operations YAML with a registry.")]
Reason = Annotated[str, typer.Option("--reason", help="Reason, kept in the journal.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides: key=value, dotted keys.")]
Resume = Annotated[bool, typer.Option(help="Go on where a run of this name stopped.")]
