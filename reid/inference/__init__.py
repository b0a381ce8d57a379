"""Inference: images to descriptors, and models exported for other programs."""
