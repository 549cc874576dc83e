"""Scores to tables: metrics, significance, figures, the report."""

RESEARCH_USE = "For research use only. Not a medical device; not for diagnosis or treatment."
"""Stated in the viewer, the API and every object that is produced."""


def images_of(dataset: str, source: str) -> str:
    """What images are called: their data set, or where that can be any folder, the folder."""
    folder = source.rstrip("/").rpartition("/")[2]
    return folder if folder and dataset in ("folder", "dicom") else dataset
