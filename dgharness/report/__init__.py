"""Tables and statistics over tracked runs."""
