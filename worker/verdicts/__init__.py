"""Giving verdicts, by call or by file."""
