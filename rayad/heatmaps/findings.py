"""What a detector marks in an image, as a list that a reader can answer: places above the alarm that touch."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from rayad.arrays import Grid

ALARM = 0.99
"""The healthy quantile above which a place is marked; no label enters."""
MOST = 5
"""Findings of an image that are listed, the most unusual first."""


@dataclass(frozen=True)
class MarkedRegion:
    """One connected region of marked places."""

    row_mm: float
    """Of its highest place, from the top of the image."""
    col_mm: float
    """From the left."""
    size_mm2: float
    score: float
    """Of its highest place."""
    healthy_quantile: float
    """Share of healthy places that score lower than that."""


def findings(
    scores: Grid, healthy_quantile: Grid, alarm: float, step_mm: float, most: int = MOST
) -> tuple[list[MarkedRegion], int]:
    """The regions of an image above the alarm, and how many there are in all.

    Args:
        scores: gh gw, nan outside the tissue.
        healthy_quantile: of the same places.
        alarm: the quantile above which a place is marked.
        step_mm: distance of neighbouring places.
    """
    marked = np.nan_to_num(healthy_quantile, nan=0.0) > alarm
    labels = np.zeros(marked.shape, dtype=np.int64)
    number = int(ndimage.label(marked, structure=np.ones((3, 3)), output=labels))  # type: ignore[reportArgumentType]
    places = np.flatnonzero(labels)
    places = places[np.argsort(-scores.ravel()[places], kind="stable")]  # the highest first
    _, first, sizes = np.unique(labels.ravel()[places], return_index=True, return_counts=True)
    listed = []
    for region in np.argsort(-scores.ravel()[places[first]], kind="stable")[:most]:
        row, column = np.unravel_index(places[first[region]], scores.shape)
        listed.append(
            MarkedRegion(
                row_mm=float((row + 0.5) * step_mm),
                col_mm=float((column + 0.5) * step_mm),
                size_mm2=float(sizes[region] * step_mm**2),
                score=float(scores[row, column]),
                healthy_quantile=float(healthy_quantile[row, column]),
            )
        )
    return listed, number
