"""Frames in, forecast out."""
