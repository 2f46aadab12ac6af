"""Scans: depth images and clouds of points, from their files to what detectors look at.

Speaks numpy, and imports no torch and nothing of detectors.
"""
