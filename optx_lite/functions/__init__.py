"""A Python function as a value: traced, its constants and its structure."""
