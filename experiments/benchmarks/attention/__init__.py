"""Benchmarks: pruned attention."""
