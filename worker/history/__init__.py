"""Earlier scores: kept, or no more."""
