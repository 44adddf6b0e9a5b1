"""Webhooks: set, and told of flagged rows."""
