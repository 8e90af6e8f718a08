"""Versioned stores of frames, forecasts and scores."""

from nowcast.store.repository import (
    Commit,
    Extension,
    ForecastStore,
    FrameStore,
    Pixels,
    Place,
    ScoreStore,
    Store,
    fill,
    open_store,
)

__all__ = [
    "Commit",
    "Extension",
    "ForecastStore",
    "FrameStore",
    "Pixels",
    "Place",
    "ScoreStore",
    "Store",
    "fill",
    "open_store",
]
