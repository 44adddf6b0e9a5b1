"""The objects made for each source, one file a kind."""
