"""The operational cycle: ingest, forecast, verify, publish.

Radar frames and baselines are on the page before a network is asked; a network that is late, dies or needs too much
memory is replaced by its fallback.

The demo, the command line and the Prefect flow all call ``cycle``. Each step is idempotent, so the next cycle repairs
one that was killed: it does what is missing and leaves what is there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter

import xarray as xr

from nowcast import config, readers
from nowcast.config import Operations
from nowcast.core import device_lock
from nowcast.core.cube import to_datetime
from nowcast.core.errors import BusyError, ConfigError, OptionError
from nowcast.core.locks import Timeout, locked
from nowcast.ingestion.append import Summary
from nowcast.ingestion.run import AUTO, Progress, ingest
from nowcast.operations import schedule, shadow
from nowcast.operations.issuing import Issuing, apart
from nowcast.operations.promotion import shadow_stores
from nowcast.operations.schedule import Due
from nowcast.operations.stores import Stores
from nowcast.verification.run import verify
from nowcast.web.publish import publish, publish_maps

SHARE = 0.8
"""Fraction of the time between two cycles that cycle and shadow forecasts may take together."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What one cycle did."""

    taken: int = 0
    known: int = 0
    revised: int = 0
    refused: list[str] = field(default_factory=list)
    left_out: int = 0
    """Frames of other products than the chain's."""
    remembered: int = 0
    """Files that were refused in an earlier cycle and have not changed."""
    contradictions: list[str] = field(default_factory=list)
    """What the times of the frames say against their stated step."""
    newest: datetime | None = None
    """Newest frame, UTC."""
    issued: list[str] = field(default_factory=list)
    """One line per product made."""
    scored: int = 0
    """Forecast frames verified."""
    published: Path | None = None
    """The manifest of the page."""
    seconds: float = 0.0
    """Time until the page was published."""
    alarms: list[str] = field(default_factory=list)
    """One line per network that was stopped and replaced."""
    shadowed: list[str] = field(default_factory=list)
    """One line per forecast of a challenger, and per failure."""
    failures: list[str] = field(default_factory=list)
    """One line per step that failed, while the others went on: ``feed`` where something landed and nothing was taken,
    or where it cannot be read."""

    @property
    def idle(self) -> bool:
        """Whether no frame came and nothing was left to do; a failure is not idle."""
        return not (self.failures or self.taken or self.revised or self.issued or self.scored)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Operations:
    """Read the settings of an operational chain, and check that its reader exists.

    Raises:
        ConfigError: One sentence per mistake.
    """
    settings = config.load(Operations, path, overrides)
    try:
        if settings.feed.reader != AUTO:
            readers.get(settings.feed.reader)
    except OptionError as error:
        raise ConfigError(f"{path}: feed.reader: {error}") from None
    return settings


def cycle(settings: Operations, *, now: datetime | None = None, progress: Progress | None = None) -> Report:
    """Ingest new files, forecast from the newest frame, score what became verifiable, and publish.

    Trainings on the same GPU pause meanwhile. Then, where the chain has a registry, the challengers make shadow
    forecasts.

    Args:
        settings: The chain.
        now: Overrides the clock for archived data.
        progress: Passed to the ingest.

    Raises:
        BusyError: If another cycle of the same chain is running.
        StoreError: If a store cannot be written.
    """
    started, stores = perf_counter(), Stores.of(settings)
    with _one_at_a_time(settings), device_lock.hold(device_lock.device_id()):
        summary = _ingest(settings, stores, now=now, progress=progress)
        if summary.newest is None:
            return _report(summary, started)
        log.info("%d frames taken, the newest is of %s", summary.taken, summary.newest)
        cube = schedule.visible(stores.frames.read(), settings, now)
        if cube.attrs.get("cadence_seconds") == 0:
            summary.contradictions.append("the step of the feed is unknown until its second frame: no forecast yet")
            return _report(summary, started)
        dues = schedule.due(settings, cube, stores.forecasts)
        issued = _issue(settings, stores, cube, dues)
        log.info("forecasts issued: %s", ", ".join(issued.lines) or "none")
        report = _score_and_publish(settings, stores, cube, summary, issued, started)
        log.info("%d forecast frames scored, page %s", report.scored, report.published)
        with apart("old versions", report.failures):
            _expire_versions(settings, stores)
    newest = [due.time for due in dues[:1] if not due.reason]
    return report if report.idle else replace(report, shadowed=_run_shadow(settings, newest, started))


def backfill(
    settings: Operations, *, start: datetime, end: datetime, dry_run: bool = False, progress: Progress | None = None
) -> Report:
    """Make and score the forecasts that an outage left out, from every frame in [start, end).

    Args:
        settings: The chain.
        start: First reference time, UTC.
        end: End of the reference times, exclusive.
        dry_run: Report which forecasts would be made, and write nothing.
        progress: Called after each reference time.
    """
    started, stores = perf_counter(), Stores.of(settings)
    with _one_at_a_time(settings):
        summary = Summary() if dry_run else _ingest(settings, stores)
        if not stores.frames.exists():
            return _report(summary, started)
        times = [time for time in map(to_datetime, stores.frames.times()) if start <= time < end]
        times = [time for time in times if schedule.is_due(time, settings.issue_every_minutes)]
        if dry_run:
            return _report(summary, started, issued=[f"{time:%Y-%m-%dT%H:%MZ}" for time in times])
        cube = schedule.visible(stores.frames.read(), settings, None)
        issuing = _issuing(settings, stores, cube, limited=False)
        for done, due in enumerate(schedule.all_due(settings, stores.forecasts, times), 1):
            issuing.rest([due])
            if progress:
                progress(done, len(times), f"{due.time:%Y-%m-%d %H:%M}")
        issuing.worker.release()
        return _score_and_publish(settings, stores, cube, summary, issuing, started, since=start)


def _ingest(
    settings: Operations, stores: Stores, *, now: datetime | None = None, progress: Progress | None = None
) -> Summary:
    """Bring what is new in the feed into the store of frames."""
    feed = settings.feed
    return ingest(
        feed.reader,
        [feed.source],
        stores.frames,
        now=now,
        settings=feed.quality,
        product=feed.product,
        cadence=feed.cadence_seconds,
        progress=progress,
    )


def _run_shadow(settings: Operations, times: Sequence[datetime], started: float) -> list[str]:
    """Let the challengers forecast in the time that is left, without the lock, so that the next cycle need not wait."""
    left = SHARE * 60 * settings.every_minutes - (perf_counter() - started)
    due = [time for time in times if schedule.is_due(time, settings.shadow.every_minutes)]
    seconds = min(settings.shadow.budget_seconds, left)
    return [line for time in due for line in shadow.run(settings, time, seconds=seconds)]


def _issuing(settings: Operations, stores: Stores, cube: xr.Dataset, *, limited: bool = True) -> Issuing:
    step = float(cube.attrs.get("cadence_seconds", 0)) or 60 * settings.every_minutes
    return Issuing(settings, stores, step, limited=limited)


def _issue(settings: Operations, stores: Stores, cube: xr.Dataset, dues: Sequence[Due]) -> Issuing:
    """Make what is due; the page has the radar frames and the baselines before a network is asked."""
    issuing = _issuing(settings, stores, cube)
    if dues:
        newest, *older = dues
        waiting = issuing.pending(newest)
        if waiting:
            issuing.worker.warm()
        issuing.baselines(newest)
        if waiting and stores.forecasts.exists():
            with apart("page", []):  # which is written again at the end, and named there if it fails
                publish_site(settings, stores, cube)
        issuing.networks(newest)
        issuing.rest(older)
    issuing.worker.release()
    return issuing


def _score_and_publish(
    settings: Operations,
    stores: Stores,
    cube: xr.Dataset,
    summary: Summary,
    issuing: Issuing,
    started: float,
    *,
    since: datetime | None = None,
) -> Report:
    """Score what became verifiable, publish the page, and report; what fails does not stop the rest."""
    made = {"issued": issuing.lines, "alarms": issuing.alarms, "failures": issuing.failures}
    if not stores.forecasts.exists():
        return _report(summary, started, **made)
    newest, scored, published = summary.newest or datetime.now(UTC), 0, None
    with apart("scores", issuing.failures):
        scored = verify(
            *stores,
            thresholds=settings.thresholds,
            lpips=settings.lpips,
            since=since or newest - timedelta(hours=24),
        )
    with apart("page", issuing.failures):
        published = publish_site(settings, stores, cube)
    if settings.map_leads:
        with apart("maps", issuing.failures):
            draw_maps(settings, stores, cube)
    return _report(summary, started, scored=scored, published=published, **made)


def publish_site(settings: Operations, stores: Stores, observed: xr.Dataset) -> Path:
    """Bring the page of a chain up to date with its stores, without the map images.

    Args:
        settings: The chain.
        stores: Its stores.
        observed: Its frames, see ``schedule.visible``.
    """
    forecasts = stores.forecasts.read()
    scores = stores.scores.read() if stores.scores.exists() else None
    return publish(
        observed,
        forecasts,
        scores,
        settings.site,
        title=settings.title,
        channel=settings.quantity,
        products=[product.name for product in settings.products],
        thresholds=settings.thresholds,
        age=settings.age,
        keep_runs=settings.keep_runs,
        keep_observed=settings.keep_observed,
        replay=settings.replay,
    )


def draw_maps(settings: Operations, stores: Stores, observed: xr.Dataset) -> list[Path]:
    """Draw the newest run of the first product as map images beside the page."""
    return publish_maps(
        observed,
        stores.forecasts.read(),
        settings.site,
        leads=settings.map_leads,
        channel=settings.quantity,
        product=settings.products[0].name,
    )


def _expire_versions(settings: Operations, stores: Stores) -> None:
    """Expire old versions of the stores once a day: every commit keeps a list of all chunks, hundreds a day."""
    if not shadow.first_today(settings.site / ".versions"):
        return
    unseen = shadow_stores(settings)[1:] if settings.registry else ()
    for store in (*stores, *unseen):
        if store.exists():
            store.expire(older_than=timedelta(days=settings.keep_versions_days))


def _report(summary: Summary, started: float, *, failures: Sequence[str] = (), **more: object) -> Report:
    names = {"taken", "known", "revised", "refused", "left_out", "remembered", "contradictions", "newest"}
    counts = {name: getattr(summary, name) for name in names}
    failed = [*([f"feed: {summary.failure}"] if summary.failure else []), *failures]
    return Report(**counts, failures=failed, seconds=perf_counter() - started, **more)  # type: ignore[arg-type]


@contextmanager
def _one_at_a_time(settings: Operations) -> Iterator[None]:
    """Hold the lock of a chain, whose cycles must not overlap; it is released if the process dies."""
    settings.site.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(settings.site / ".cycle.lock", seconds=0))
        except Timeout:
            raise BusyError(f"{settings.site}: another cycle is running; let it finish.") from None
        yield
