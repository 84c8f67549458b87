"""Data sets and toy problems."""
