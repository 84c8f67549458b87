"""Studies: lottery tickets."""
