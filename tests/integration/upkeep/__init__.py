"""Sweep and prune, a part of the keys at a time."""
