"""Studies: structural pruning."""
