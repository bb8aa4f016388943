"""Searches for the lowest minimum, one algorithm a file."""
