"""Studies: bi-level pruning."""
