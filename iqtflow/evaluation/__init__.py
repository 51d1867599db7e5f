"""Scores of an enhanced volume against the truth."""
