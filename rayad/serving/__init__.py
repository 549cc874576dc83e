"""Scoring as a service, without Ray: who may ask, what is fetched, what is answered, what goes back to the archive."""

RESEARCH_USE = "For research use only. Not a medical device; not for diagnosis or treatment."
"""Stated in the viewer, the API and every object that is produced."""
