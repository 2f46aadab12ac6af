"""Detectors that learn the likelihood of good features with normalising flows."""
