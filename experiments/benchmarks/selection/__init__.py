"""Benchmarks: exact selection."""
