"""Studies: SpAtten's token, head and value pruning."""
