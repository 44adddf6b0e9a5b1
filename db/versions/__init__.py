"""Model versions, their aliases, and what the challenger scored."""
