"""Scores to tables: metrics, significance, figures, the report."""

RESEARCH_USE = "For research use only. Not a medical device; not for diagnosis or treatment."
"""Stated in the viewer, the API and every object that is produced."""
