"""Versioned stores of frames, forecasts and scores."""

from nowcast.store.repository import (
    Commit,
    ForecastStore,
    FrameStore,
    Growth,
    Pixels,
    Place,
    ScoreStore,
    Store,
    fill,
    open_store,
)

__all__ = [
    "Commit",
    "ForecastStore",
    "FrameStore",
    "Growth",
    "Pixels",
    "Place",
    "ScoreStore",
    "Store",
    "fill",
    "open_store",
]
