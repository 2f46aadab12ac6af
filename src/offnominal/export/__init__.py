"""Fitted detectors as files that run without Python's training stack."""
