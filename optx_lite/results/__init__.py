"""Records, status codes, messages; one file a family."""
