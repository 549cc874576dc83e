"""Regions of places that touch: of what a detector marks in an image, and of lesions; how high they score."""

import numpy as np
from jaxtyping import Float, Int64
from scipy import ndimage

from rayad.arrays import Grid, GridMask

ALARM = 0.99
"""The healthy quantile above which a place is marked; no label enters."""


def regions(marked: GridMask) -> tuple[Int64[np.ndarray, "gh gw"], int]:
    """The number of each place's region, from 1, 0 outside of all, and how many there are; corners touch too."""
    labels = np.zeros(marked.shape, dtype=np.int64)
    number = int(ndimage.label(marked, structure=np.ones((3, 3)), output=labels))  # type: ignore[reportArgumentType]
    return labels, number


def peaks(scores: Grid, marked: GridMask) -> Float[np.ndarray, " r"]:
    """The highest score of each region."""
    labels, number = regions(marked)
    return np.asarray(ndimage.maximum(scores, labels, np.arange(1, number + 1)), np.float64).reshape(number)
