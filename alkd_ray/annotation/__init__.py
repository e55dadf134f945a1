"""Buying rankings: prompts, parsing, prices, ledger, store, worker."""
