"""The stages, from URL to URL; each runs on a `Pool`: in this process, or on Ray."""
