"""Figures of what is going on."""
