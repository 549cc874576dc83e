"""The only package that imports Ray: every stage on one laptop or a cluster."""
