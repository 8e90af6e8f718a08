"""Challengers forecast beside the products, unseen: after the page is out, in a process that ends in time.

A network that hangs, eats the memory or takes the interpreter down does so alone. Its forecasts go to stores of
their own and are scored like those of products; what went wrong is said in the report of the cycle.
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
from nowcast.forecasting.run import issue
from nowcast.operations import promotion
from nowcast.operations.comparison import BETTER
from nowcast.verification.run import verify

COMMAND = (sys.executable, "-P", "-m", "nowcast.operations.shadow")
SCORED_BACK = timedelta(hours=24)
"""Shadow runs older than this are no longer scored."""
LINGER_SECONDS = 5
"""After its budget, and this, a shadow whose cycle was killed ends by itself."""
DAY_SECONDS = 86_400
log = logging.getLogger(__name__)


def run(settings: Operations, time: datetime, *, seconds: float) -> list[str]:
    """Lets all challengers forecast from one frame, and scores what became verifiable; never raises, never lasts.

    Args:
        settings: The chain.
        time: Reference time.
        seconds: They are stopped after this.

    Returns:
        One line per forecast made, and one about what went wrong.
    """
    try:
        if not candidates(settings):
            return []
        return _in_time(settings, time, seconds)
    except Exception as error:  # whatever it is, the products are out and the next cycle must come
        log.warning("no shadow forecasts: %s", error, exc_info=True)
        return [f"shadow: {_sentence(error)}"]


def candidates(settings: Operations) -> list[Product]:
    """Who forecasts in the shadow: the challengers, and a champion that no product is made by."""
    if settings.registry is None:
        return []
    registry = promotion.open_registry(settings)
    now = registry.standing
    seen = any(product.model == CHAMPION for product in settings.products)
    unseen = [now.champion] if now.champion and not seen else []
    return [Product(name=now.names[digest], model=str(registry.file(digest))) for digest in (*unseen, *now.challengers)]


def _in_time(settings: Operations, time: datetime, seconds: float) -> list[str]:
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
            _keep(failed)
            return [*said.splitlines(), f"shadow: stopped after {seconds:.0f} s, the rest is left out"]
        except BaseException:
            child.kill()
            raise
    _keep(failed)
    lines = said.splitlines()
    if child.returncode:
        words = failed.strip().splitlines() if child.returncode > 0 else []  # who is killed has no last words
        lines.append(f"shadow: ended with code {child.returncode}: {words[-1] if words else 'no reason given'}")
    return lines


def _keep(failed: str) -> None:
    """What the process wrote to standard error, tracebacks too, goes into the log of the cycle."""
    if failed.strip():
        log.warning("from the shadow process:\n%s", failed.rstrip())


def _sentence(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


# --- in the process of its own --------------------------------------------------------------------


def main() -> None:
    """Reads an order from standard input; says line by line what was done."""
    order = json.load(sys.stdin)
    signal.alarm(ceil(order["seconds"]) + LINGER_SECONDS)
    configure()  # as text, which the cycle logs in its own format
    for line in work(Operations.model_validate(order["settings"]), datetime.fromisoformat(order["time"])):
        print(line, flush=True)


def work(settings: Operations, time: datetime) -> Iterator[str]:
    """Scores first, for it must not wait for a network that hangs; then forecasts, one commit each."""
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
        yield from _promote_the_better(settings)


def _in_turn(products: Sequence[Product], time: datetime) -> list[Product]:
    """Each comes first at times: one that always hangs must not stop the same others for ever."""
    start = int(time.timestamp() // 60) % max(len(products), 1)
    return [*products[start:], *products[:start]]


def _promote_the_better(settings: Operations) -> Iterator[str]:
    """The first challenger that is better than the champion takes its place."""
    now = promotion.open_registry(settings).standing
    for digest in now.challengers if now.champion else ():
        if promotion.compare(settings, digest).outcome == BETTER:
            yield f"promoted: {promotion.promote(settings, digest)}"
            return


def first_today(marker: Path) -> bool:
    """True once in 24 hours."""
    if marker.exists() and datetime.now(UTC).timestamp() - marker.stat().st_mtime < DAY_SECONDS:
        return False
    marker.touch()
    return True


if __name__ == "__main__":
    main()
