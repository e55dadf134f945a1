"""Verbs of the command line: they parse, call, print; no logic."""
