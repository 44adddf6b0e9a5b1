"""What versions are trained on, and the record of each training."""
