"""Defects made to order: a good image in, a defective one and its mask out."""
