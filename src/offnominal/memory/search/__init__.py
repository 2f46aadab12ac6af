"""Exact nearest-neighbour search: cheap bounds first, then exact distances."""
