"""What roles may do in schema `outlier`."""
