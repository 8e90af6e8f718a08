"""Checkpoints, their life, and their conversion."""
