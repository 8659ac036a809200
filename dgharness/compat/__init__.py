"""Algorithm classes of other code bases, run as they are."""
