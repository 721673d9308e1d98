"""Trains the small `shapes` checkpoints: scenes that are drawn, losses, a loop. Needs torch and transformers only."""
