"""Detectors that compare images with texts."""
