"""Square patches: where to take them, how to store them, in which order to read them."""
