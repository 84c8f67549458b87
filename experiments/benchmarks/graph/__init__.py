"""Benchmarks: groups and smaller arrays."""
