"""Minimisers of a scalar function."""
