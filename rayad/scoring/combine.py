"""From the scores of single places to the score that a heatmap shows."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from rayad.arrays import Grid, GridMask
from rayad.errors import OptionError


@dataclass(frozen=True)
class Aggregation:
    """A part of the score's configuration: a speck detector needs a window, a mass detector a smooth map."""

    kind: str = "none"
    """none, gaussian, or maximum."""
    size_mm: float = 0.0
    """Standard deviation of the Gaussian, or radius of the maximum's window, mm."""

    def __post_init__(self) -> None:
        if self.kind not in ("none", "gaussian", "maximum"):
            raise OptionError(f"no aggregation {self.kind!r}; rayad has none, gaussian, maximum")


def aggregate(scores: Grid, tissue: GridMask, aggregation: Aggregation, step_mm: float) -> Grid:
    """Aggregate over the tissue around each place; nan outside the tissue stays nan.

    Args:
        step_mm: distance of neighbouring places.
    """
    size = aggregation.size_mm / step_mm
    if aggregation.kind == "gaussian":
        weight = ndimage.gaussian_filter(tissue.astype(np.float64), size)
        total = ndimage.gaussian_filter(np.where(tissue, scores, 0).astype(np.float64), size)
        scores = (total / np.maximum(weight, 1e-12)).astype(scores.dtype)
    elif aggregation.kind == "maximum":
        reach = int(size)
        y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
        scores = ndimage.maximum_filter(np.where(tissue, scores, -np.inf), footprint=x * x + y * y <= size * size)
    return np.where(tissue, scores, np.nan).astype(scores.dtype)
