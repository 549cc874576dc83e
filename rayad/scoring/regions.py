"""Regions of marked places: what a detector marks in an image, and how high such regions score."""

import numpy as np
from jaxtyping import Float, Int64
from scipy import ndimage

from rayad.arrays import Grid, GridMask

ALARM = 0.99
"""The healthy quantile above which a place is marked; no label enters."""


def regions(marked: GridMask) -> tuple[Int64[np.ndarray, "gh gw"], int]:
    """The number of each place's region, 0 where none is marked, and how many regions there are; corners touch."""
    labels = np.zeros(marked.shape, dtype=np.int64)
    number = int(ndimage.label(marked, structure=np.ones((3, 3)), output=labels))  # type: ignore[reportArgumentType]
    return labels, number


def peaks(scores: Grid, marked: GridMask) -> Float[np.ndarray, " r"]:
    """The highest score of each region."""
    labels, number = regions(marked)
    highest = np.full(number + 1, -np.inf)
    np.maximum.at(highest, labels[marked], scores[marked].astype(np.float64))
    return highest[1:]
