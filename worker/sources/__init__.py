"""What administrators do with sources."""
