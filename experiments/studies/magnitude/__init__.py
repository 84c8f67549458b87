"""Studies: magnitude pruning."""
