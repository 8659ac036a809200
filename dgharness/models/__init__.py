"""Featurizers, heads and weights; one file per architecture."""
