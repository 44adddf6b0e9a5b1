"""Finding what was missed and removing what is no longer needed, a part of the keys at a time."""
