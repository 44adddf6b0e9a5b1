"""Jobs over rows that are there already: controlled, and worked on."""
