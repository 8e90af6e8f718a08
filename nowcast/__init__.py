"""Precipitation nowcasting: radar files in, verified forecasts and maps out.

What a notebook needs is here, and is loaded when it is asked for::

    import nowcast

    nowcast.ingest("knmi", ["/data/knmi"], "var/frames")
    cube = nowcast.open_store("var/frames")
    made = nowcast.forecast(cube, "extrapolation", leads=12)
    nowcast.plot_map(made.isel(lead_time=5))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nowcast.forecasting.run import forecast
    from nowcast.ingestion.run import ingest
    from nowcast.models import build
    from nowcast.plotting.maps import plot_map
    from nowcast.registry.checkpoint import load_checkpoint
    from nowcast.store import open_store
    from nowcast.verification.published import score_as
    from nowcast.verification.run import verify

    __version__: str

__all__ = [
    "__version__",
    "build",
    "forecast",
    "ingest",
    "load_checkpoint",
    "open_store",
    "plot_map",
    "score_as",
    "verify",
]

_PLACES = {
    "build": "models",
    "forecast": "forecasting.run",
    "ingest": "ingestion.run",
    "load_checkpoint": "registry.checkpoint",
    "open_store": "store",
    "plot_map": "plotting.maps",
    "score_as": "verification.published",
    "verify": "verification.run",
}


def __getattr__(name: str) -> Any:
    """Load a public function, and what it needs, at its first use: ``import nowcast`` alone takes a millisecond."""
    if name == "__version__":
        return import_module("nowcast.core.version").code_version()
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"nowcast.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, for completion."""
    return sorted(__all__)
