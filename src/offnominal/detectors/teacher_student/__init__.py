"""Detectors whose student learns what a teacher says of good parts, and errs on what is new."""
