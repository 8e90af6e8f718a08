"""Flow that converts archives, benchmarks and videos into stores, in parallel; an interrupted run can be resumed."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from nowcast.config import QualitySettings
from nowcast.core.errors import NowcastError
from nowcast.flows.report import ingested, progress_bar, skipped


@flow(name="ingest")
def ingest(
    reader: str,
    sources: list[str],
    store: str,
    workers: Annotated[int, Field(ge=0)] = 0,
    scheduler: str | None = None,
    quality: QualitySettings = QualitySettings(),
    product: str = "",
    cadence: Annotated[int, Field(ge=1)] | None = None,
) -> State[None]:
    """Bring files into a store; frames that it holds are not read again.

    Args:
        reader: Name of the source: knmi, sevir, kth, ...; auto finds it.
        sources: Files, folders or globs.
        store: Folder, or s3://bucket/prefix.
        workers: Processes of a Dask cluster on the machine of the run; 0: none.
        scheduler: A Dask cluster that runs already, tcp://host:port.
        quality: Quality checks of the frames.
        product: Which one of several to take: RW, sum of 60 min; a store holds one product.
        cadence: Seconds between frames of a live feed; None: found from their times.
    """
    from nowcast.ingestion.run import ingest as take

    summary = take(
        reader,
        sources,
        store,
        settings=quality,
        product=product,
        cadence=cadence,
        workers=workers,
        scheduler=scheduler,
        progress=progress_bar("ingest-progress"),
    )
    create_markdown_artifact(key="ingest", markdown=ingested(summary))
    if summary.failure:
        raise NowcastError(summary.failure)
    if summary.refused and not (summary.taken or summary.known or summary.revised):
        raise NowcastError(summary.refused[0])
    if not (summary.taken or summary.revised):
        return skipped(f"Nothing new in {', '.join(sources)}.")
    return Completed(message=f"{summary.taken} frames taken, {len(summary.refused)} items refused.")
