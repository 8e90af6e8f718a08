"""The operational cycle: ingest, forecast, verify, publish.

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

import numpy as np

from nowcast import config, readers
from nowcast.config import Operations
from nowcast.core import device_lock
from nowcast.core.errors import BusyError, ConfigError, OptionError
from nowcast.core.locks import Timeout, locked
from nowcast.forecasting.fallback import issue
from nowcast.forecasting.netcdf import export
from nowcast.ingestion.append import Summary
from nowcast.ingestion.run import AUTO, Progress, ingest
from nowcast.operations import shadow
from nowcast.operations.promotion import shadow_stores
from nowcast.operations.stores import Stores
from nowcast.store import FrameStore
from nowcast.verification.run import verify
from nowcast.web.publish import publish, publish_maps

SHARE = 0.8
"""Fraction of the time between two cycles that cycle and shadow forecasts may take together."""
RECENT_FRAMES = 100
"""Number of newest frames among which one that is due is sought."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What one cycle did."""

    taken: int = 0
    known: int = 0
    revised: int = 0
    refused: list[str] = field(default_factory=list)
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
    shadowed: list[str] = field(default_factory=list)
    """One line per forecast of a challenger, and per failure."""
    failures: list[str] = field(default_factory=list)
    """One line per step that failed, while the others went on."""

    @property
    def idle(self) -> bool:
        """Whether no frame came and nothing was left to do."""
        return not (self.taken or self.revised or self.issued or self.scored or self.failures)


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
        summary = ingest(
            settings.feed.reader,
            [settings.feed.source],
            stores.frames,
            now=now,
            settings=settings.feed.quality,
            progress=progress,
        )
        if summary.newest is None:
            return _report(summary, started)
        log.info("%d frames taken, the newest is of %s", summary.taken, summary.newest)
        times = _frames_due(settings, stores.frames, summary.newest)
        failures: list[str] = []
        issued = _issue(settings, stores, times, failures)
        log.info("forecasts issued: %s", ", ".join(issued) or "none")
        report = _score_and_publish(settings, stores, summary, issued, started, failures)
        log.info("%d forecast frames scored, page %s", report.scored, report.published)
        with _apart("old versions", failures):
            _expire_versions(settings, stores)
    return report if report.idle else replace(report, shadowed=_run_shadow(settings, times, started))


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
        feed = settings.feed
        summary = Summary() if dry_run else ingest(feed.reader, [feed.source], stores.frames, settings=feed.quality)
        if not stores.frames.exists():
            return _report(summary, started)
        times = [time for time in _in_utc(stores.frames.times()) if start <= time < end]
        if dry_run:
            due = [f"{time:%Y-%m-%dT%H:%MZ}" for time in times if _due(time, settings.issue_every_minutes)]
            return _report(summary, started, issued=due)
        failures: list[str] = []
        issued = _issue(settings, stores, times, failures, progress)
        return _score_and_publish(settings, stores, summary, issued, started, failures, since=start)


def _run_shadow(settings: Operations, times: Sequence[datetime], started: float) -> list[str]:
    """Let the challengers forecast in the time that is left, without the lock, so that the next cycle need not wait."""
    left = SHARE * 60 * settings.every_minutes - (perf_counter() - started)
    due = [time for time in times if _due(time, settings.issue_every_minutes)]
    due = [time for time in due if _due(time, settings.shadow.every_minutes)]
    seconds = min(settings.shadow.budget_seconds, left)
    return [line for time in due for line in shadow.run(settings, time, seconds=seconds)]


def _issue(
    settings: Operations,
    stores: Stores,
    times: Sequence[datetime],
    failures: list[str],
    progress: Progress | None = None,
) -> list[str]:
    lines: list[str] = []
    for done, time in enumerate(times, 1):
        if not _due(time, settings.issue_every_minutes):
            continue
        with _apart("forecasts", failures):
            lines += issue(
                stores.frames,
                stores.forecasts,
                settings.makers,
                fallback=settings.fallback,
                leads=settings.leads,
                time=time,
                channel=settings.quantity,
            )
        if settings.netcdf and stores.forecasts.exists():
            with _apart("NetCDF", failures):
                export(stores.forecasts, time, settings.netcdf)
        if progress:
            progress(done, len(times), f"{time:%Y-%m-%d %H:%M}")
    return lines


def _score_and_publish(
    settings: Operations,
    stores: Stores,
    summary: Summary,
    issued: list[str],
    started: float,
    failures: list[str],
    since: datetime | None = None,
) -> Report:
    """Score what became verifiable, publish the page, and report; what fails does not stop the rest."""
    if not stores.forecasts.exists():
        return _report(summary, started, failures=failures)
    newest, scored, published = summary.newest or datetime.now(UTC), 0, None
    with _apart("scores", failures):
        scored = verify(
            *stores,
            thresholds=settings.thresholds,
            lpips=settings.lpips,
            since=since or newest - timedelta(hours=24),
        )
    with _apart("page", failures):
        published = publish_site(settings, stores)
    if settings.map_leads:
        with _apart("maps", failures):
            draw_maps(settings, stores)
    return _report(summary, started, issued=issued, scored=scored, published=published, failures=failures)


def publish_site(settings: Operations, stores: Stores) -> Path:
    """Bring the page of a chain up to date with its stores, without the map images."""
    observed, forecasts = stores.frames.read(), stores.forecasts.read()
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


def draw_maps(settings: Operations, stores: Stores) -> list[Path]:
    """Draw the newest run as map images beside the page."""
    observed, forecasts = stores.frames.read(), stores.forecasts.read()
    return publish_maps(observed, forecasts, settings.site, leads=settings.map_leads, channel=settings.quantity)


def _frames_due(settings: Operations, frames: FrameStore, newest: datetime) -> list[datetime]:
    """Find the frame to forecast from: the newest, or the newest that is due where several came at once."""
    if settings.issue_every_minutes is None:
        return [newest]
    span = timedelta(minutes=settings.issue_every_minutes)
    times = _in_utc(frames.times()[-RECENT_FRAMES:])
    return [moment for moment in times if newest - moment < span and _due(moment, settings.issue_every_minutes)][-1:]


def _in_utc(times: np.ndarray) -> list[datetime]:
    """Convert numpy times to datetimes in UTC."""
    return [time.replace(tzinfo=UTC) for time in times.tolist()]


def _expire_versions(settings: Operations, stores: Stores) -> None:
    """Expire old versions of the stores once a day: every commit keeps a list of all chunks, hundreds a day."""
    if not shadow.first_today(settings.site / ".versions"):
        return
    unseen = shadow_stores(settings)[1:] if settings.registry else ()
    for store in (*stores, *unseen):
        if store.exists():
            store.expire(older_than=timedelta(days=settings.keep_versions_days))


def _due(time: datetime, every: int | None) -> bool:
    """Whether a frame is due: every frame is, or those at round multiples of some minutes."""
    return every is None or (time.hour * 60 + time.minute) % every == 0


def _report(summary: Summary, started: float, **more: object) -> Report:
    counts = {name: getattr(summary, name) for name in ("taken", "known", "revised", "refused", "newest")}
    return Report(**counts, seconds=perf_counter() - started, **more)  # type: ignore[arg-type]


@contextmanager
def _apart(step: str, failures: list[str]) -> Iterator[None]:
    """Note that a step failed, whatever the reason: the steps after it go on."""
    try:
        yield
    except Exception as error:
        log.warning("%s: %s", step, error, exc_info=True)
        failures.append(f"{step}: {error}")


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
