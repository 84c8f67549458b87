"""Benchmarks: sparse products."""
