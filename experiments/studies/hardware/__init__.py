"""Studies: the hardware model."""
