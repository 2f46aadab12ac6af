"""Detectors that compare patches or images with those of good parts."""
