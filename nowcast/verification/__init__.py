"""Scores, and the matching of forecasts with observations."""
