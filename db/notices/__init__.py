"""Notices of flagged rows, and their delivery to webhooks."""
