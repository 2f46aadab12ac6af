"""What language methods say to CLIP: prompts, names of parts, and their features."""
