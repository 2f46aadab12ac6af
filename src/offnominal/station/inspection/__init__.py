"""Judging pictures in processes of their own; what keeps a blind station from passing parts."""
