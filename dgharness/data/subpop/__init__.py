"""SubpopBench's datasets, from the tables that its ``scripts/download.py`` writes."""
