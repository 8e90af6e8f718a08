"""Benchmarks: networks trained and scored under the same protocol."""
