"""Scores, and which forecast meets which observation."""
