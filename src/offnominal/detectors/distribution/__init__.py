"""Detectors that fit a distribution or a subspace to features of good parts."""
