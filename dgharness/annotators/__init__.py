"""One method per file that finds domains or groups before training."""
