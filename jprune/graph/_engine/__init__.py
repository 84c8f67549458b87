"""The recorded program, its dimensions and the rules of primitives (private)."""
