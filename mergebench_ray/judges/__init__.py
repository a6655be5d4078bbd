"""Judges: second models that answer about the answers of the first."""
