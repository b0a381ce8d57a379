"""Galleries: descriptors that can be searched."""
