"""Shadow forecasts: challengers forecast unseen after the page is published, in a process with a time limit.

A network that hangs, exhausts the memory or crashes the interpreter affects nothing else. Shadow forecasts go to
stores of their own and are scored like products; failures are in the report of the cycle.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path

from nowcast.config import CHAMPION, Operations, Product
from nowcast.core.log import configure
from nowcast.forecasting.fallback import issue
from nowcast.operations import promotion
from nowcast.operations.comparison import BETTER
from nowcast.verification.run import verify

COMMAND = (sys.executable, "-P", "-m", "nowcast.operations.shadow")
SCORED_BACK = timedelta(hours=24)
"""Age up to which shadow runs are scored."""
LINGER_SECONDS = 5
"""A shadow process whose cycle was killed ends by itself this long after its budget."""
DAY_SECONDS = 86_400
log = logging.getLogger(__name__)


def run(settings: Operations, time: datetime, *, seconds: float) -> list[str]:
    """Let all challengers forecast from one frame and score what became verifiable, in limited time, without raising.

    Args:
        settings: The chain.
        time: Reference time.
        seconds: Time limit of all of them together.

    Returns:
        One line per forecast made, and one about a failure.
    """
    try:
        if not candidates(settings):
            return []
        return _run_in_process(settings, time, seconds)
    except Exception as error:  # no failure of a challenger may reach the cycle
        log.warning("no shadow forecasts: %s", error, exc_info=True)
        return [f"shadow: {_reason(error)}"]


def candidates(settings: Operations) -> list[Product]:
    """List who makes shadow forecasts: the challengers, and a champion that makes no product."""
    if settings.registry is None:
        return []
    registry = promotion.open_registry(settings)
    now = registry.standing
    seen = any(product.model == CHAMPION for product in settings.products)
    unseen = [now.champion] if now.champion and not seen else []
    return [Product(name=now.names[digest], model=str(registry.file(digest))) for digest in (*unseen, *now.challengers)]


def _run_in_process(settings: Operations, time: datetime, seconds: float) -> list[str]:
    """Forecast and score in a process of its own; stop it after some seconds, and keep what it said until then."""
    if seconds <= 0:
        return ["shadow: left out, the cycle took all the time there was"]
    order = json.dumps({"settings": settings.model_dump(mode="json"), "time": time.isoformat(), "seconds": seconds})
    with subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            said, failed = child.communicate(order, timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            said, failed = child.communicate()
            _log_errors(failed)
            return [*said.splitlines(), f"shadow: stopped after {seconds:.0f} s, the rest is left out"]
        except BaseException:
            child.kill()
            raise
    _log_errors(failed)
    lines = said.splitlines()
    if child.returncode:
        words = failed.strip().splitlines() if child.returncode > 0 else []  # a killed process states no reason
        lines.append(f"shadow: ended with code {child.returncode}: {words[-1] if words else 'no reason given'}")
    return lines


def _log_errors(failed: str) -> None:
    """Log the standard error of the process, tracebacks too, in the log of the cycle."""
    if failed.strip():
        log.warning("from the shadow process:\n%s", failed.rstrip())


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


# --- in the process of its own --------------------------------------------------------------------


def main() -> None:
    """Read settings, time and budget as JSON from standard input; print a line per forecast."""
    order = json.load(sys.stdin)
    signal.alarm(ceil(order["seconds"]) + LINGER_SECONDS)
    configure()  # as text, which the cycle logs in its own format
    for line in work(Operations.model_validate(order["settings"]), datetime.fromisoformat(order["time"])):
        print(line, flush=True)


def work(settings: Operations, time: datetime) -> Iterator[str]:
    """Score first, which must not wait for a network that hangs; then forecast, one commit each, and promote."""
    stores = promotion.shadow_stores(settings)
    if stores.forecasts.exists():
        verify(*stores, thresholds=settings.thresholds, since=time - SCORED_BACK)
    for product in _in_turn(candidates(settings), time):
        yield from issue(
            stores.frames,
            stores.forecasts,
            [product],
            fallback=(),
            leads=settings.leads,
            time=time,
            channel=settings.quantity,
        )
    folder = promotion.open_registry(settings).folder
    if settings.promotion.automatic and first_today(folder / ".judged"):
        yield from _promote_first_better(settings)


def _in_turn(products: Sequence[Product], time: datetime) -> list[Product]:
    """Rotate the order with the time: one that always hangs must not keep the same others from forecasting."""
    start = int(time.timestamp() // 60) % max(len(products), 1)
    return [*products[start:], *products[:start]]


def _promote_first_better(settings: Operations) -> Iterator[str]:
    """Promote the first challenger that is better than the champion."""
    now = promotion.open_registry(settings).standing
    for digest in now.challengers if now.champion else ():
        if promotion.compare(settings, digest).outcome == BETTER:
            yield f"promoted: {promotion.promote(settings, digest)}"
            return


def first_today(marker: Path) -> bool:
    """Return True once in 24 hours, as the time of a marker file tells."""
    if marker.exists() and datetime.now(UTC).timestamp() - marker.stat().st_mtime < DAY_SECONDS:
        return False
    marker.touch()
    return True


if __name__ == "__main__":
    main()
