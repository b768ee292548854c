"""Filling holes in pictures with a trained generator."""
