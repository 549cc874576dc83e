"""Unsupervised anomaly detection in medical images, from healthy images alone."""
