"""What the commands do, each a few calls into the parts; messages go to stderr, data to stdout."""
