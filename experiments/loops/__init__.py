"""Training and evaluation loops that several studies share."""
