"""Searches for arrays of scalar problems."""
