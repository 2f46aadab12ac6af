"""Detectors: a folder for each family, what they share beside them, and the registry."""
