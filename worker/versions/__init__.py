"""What administrators do with model versions."""
