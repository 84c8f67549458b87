"""Benchmarks: training steps."""
