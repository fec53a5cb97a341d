"""Scores for source classes and records. Takes tensors, batches and modules; opens no file and names no backend."""
