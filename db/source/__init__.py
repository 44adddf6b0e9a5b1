"""What a source is, and what the user's table says of it."""
