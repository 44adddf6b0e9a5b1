"""Measuring drift."""
