"""Ranks of targets, metrics that derive from them, and their statistics."""
