"""Domain generalization algorithms of my own."""
