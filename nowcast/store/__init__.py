"""Versioned stores of frames, forecasts and scores."""

from nowcast.store.extension import Extension, Pixels, fill
from nowcast.store.repository import Commit, ForecastStore, FrameStore, Place, ScoreStore, Store, open_store

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
