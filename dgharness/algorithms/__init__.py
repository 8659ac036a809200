"""One method per file; the file is named as the method is registered."""
