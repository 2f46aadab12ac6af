"""Detectors that learn a boundary around what good parts look like."""
