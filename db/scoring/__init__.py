"""From queued keys to written scores."""
