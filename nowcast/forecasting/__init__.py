"""Forecasts from the frames of a store."""
