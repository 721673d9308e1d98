"""Clips -> tracked instances, frame by frame, and datasets out of them."""
