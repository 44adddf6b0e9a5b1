"""What thresholds do to stored scores."""
