"""Scoring as a service, without Ray: who may ask, what is fetched, what is answered, what goes back to the archive."""

from rayad.evaluation import RESEARCH_USE as RESEARCH_USE
