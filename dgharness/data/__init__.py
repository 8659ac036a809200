"""Manifests, readers, protocols and samplers; one file per source of data."""
