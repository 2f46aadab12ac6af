"""Versions of a product: the pictures that they are learned from, making them, comparing them."""
