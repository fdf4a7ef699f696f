"""Takedown: what some clips touched is withdrawn, made again without them, deleted, blocked, and proved."""
