"""Benchmarks: the hardware model."""
