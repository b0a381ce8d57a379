"""Datasets: their format, how they are prepared, and how they become batches."""
