"""Plans of many runs, and the local pool that runs them."""
