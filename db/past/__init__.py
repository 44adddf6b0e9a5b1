"""Features over the rows before: how they are written, and how they are computed."""
