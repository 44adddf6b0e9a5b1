"""Training a version: with which recipe, on which rows, and what becomes of it."""
