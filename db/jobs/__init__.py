"""Jobs over rows that are there already, cut into ranges."""
