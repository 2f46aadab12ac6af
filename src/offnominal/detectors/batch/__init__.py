"""Detectors that score the images of a batch by each other."""
