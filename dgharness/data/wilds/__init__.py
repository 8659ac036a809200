"""The datasets of WILDS, through the ``wilds`` package: its own loading code, splits and evaluation."""
