"""The user's function made total: arguments, pytrees, bounds, losses; one file a family."""
