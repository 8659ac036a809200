"""One test-time method per file."""
