"""Fitting backbones: loop, losses, checkpoints."""
