"""Train, measure and compare domain generalization algorithms."""

__version__ = "0.1.0"
