"""Synthetic constructions with a known answer, one file each: functions of a seed, and datasets of them."""
