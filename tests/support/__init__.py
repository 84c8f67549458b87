"""Oracles, cases and worker programs that several tests share."""
