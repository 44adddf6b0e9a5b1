"""Keeping the books straight: sweep, quarantine, prune."""
