"""Scores for source classes. Takes iterables of batches and modules; opens no file and names no backend."""
