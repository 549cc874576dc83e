"""Densities of latents, one a file, found by its file name."""
