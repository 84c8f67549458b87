"""Private foundations that every package imports."""
