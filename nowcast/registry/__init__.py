"""Checkpoints: their files, their registry, and their conversion."""
