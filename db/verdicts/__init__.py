"""What analysts said of rows."""
