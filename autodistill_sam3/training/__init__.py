"""Trains the small `shapes` checkpoints: scenes that are drawn, losses, a loop.

Needs torch and transformers only, but for `asking`, `table` and `pictures`, which measure finished checkpoints through
the whole package.
"""
