"""Scores to tables: metrics, significance, figures, the report."""
