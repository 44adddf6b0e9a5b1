"""Sources as they are stored: attached, found, changed, detached."""
