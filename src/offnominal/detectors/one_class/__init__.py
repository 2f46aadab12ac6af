"""Detectors that are trained to map good images, and nothing else, close together."""
