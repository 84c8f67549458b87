"""Training loops that several studies share."""
