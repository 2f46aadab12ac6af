"""Detectors that see what a network fails to paint."""
