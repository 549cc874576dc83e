"""Patches of 64x64: where to take them, how to store them, in which order to read them."""
