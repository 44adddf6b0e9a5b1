"""Earlier scores of rows."""
