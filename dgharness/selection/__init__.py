"""One model-selection rule per file: pure functions over logged results."""
