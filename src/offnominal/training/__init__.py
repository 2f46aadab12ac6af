"""Training of what detectors use: prompts so far. The core does not import from here."""
