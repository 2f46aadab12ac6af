"""Training of anything that has a loss; nothing here knows a detector."""
