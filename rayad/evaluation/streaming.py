"""Counts of places in fixed bins: they add over workers, and areas are read off them.

Sorting all places of a large test set needs all of them in one place; 4,096 counts a class do not. The edges are fixed
beforehand, from quantiles of healthy scores: half of the bins evenly, half where 1 - quantile falls evenly in
logarithm, so that the tail, where alarms live, is fine; beyond the highest healthy score bins go on evenly, and both
ends are open. Ties within a bin count one half, so an area is wrong by at most half of the pairs that share a bin.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from rayad.evaluation import metrics

BINS = 4096
BEYOND = 256
"""Bins above the highest healthy score, over twice the range of the healthy scores."""


@dataclass(frozen=True)
class Histogram:
    """How many normal and how many anomalous places have which score."""

    edges: Float[np.ndarray, " b"]
    """Ascending; bin i holds scores in (edges[i - 1], edges[i]], the first and the last are open."""
    normal: Int[np.ndarray, " t"]
    anomalous: Int[np.ndarray, " t"]

    def __add__(self, other: "Histogram") -> "Histogram":
        """The counts of both; ValueError if their edges differ."""
        if not np.array_equal(self.edges, other.edges):
            raise ValueError("histograms of different edges do not add")
        return Histogram(self.edges, self.normal + other.normal, self.anomalous + other.anomalous)

    def auroc(self) -> float:
        """Area under the ROC curve; `metrics.Undefined` if a class is missing."""
        return float(metrics.area(*self._cumulated())[0])

    def average_precision(self) -> float:
        """Mean precision over the anomalous places; `metrics.Undefined` if a class is missing."""
        return float(metrics.average_precision(*self._cumulated())[0])

    def best_dice(self) -> float:
        """Dice at the best of the edges; it has seen the labels; `metrics.Undefined` if a class is missing."""
        return float(metrics.best_dice(*self._cumulated())[0])

    def _cumulated(self) -> tuple[np.ndarray, np.ndarray]:
        """Places at or above each edge, the highest bin first."""
        counts = [int(self.anomalous.sum()), int(self.normal.sum())]
        if not all(counts):
            raise metrics.Undefined(f"AUROC needs both classes, got {counts[0]} anomalous and {counts[1]} normal")
        tp, fp = (np.cumsum(binned[::-1])[None].astype(float) for binned in (self.anomalous, self.normal))
        return tp, fp


def edges_of(levels: Float[np.ndarray, " q"], quantiles: Float[np.ndarray, " q"]) -> Float[np.ndarray, " b"]:
    """Fixed edges for scores whose healthy quantile function is this, at most 4,095 and ascending.

    Args:
        levels: ascending, from 0 to 1.
        quantiles: the healthy score at each level.

    Raises:
        ValueError: no healthy score, or one that is not finite.
    """
    if quantiles.size == 0 or not np.isfinite(quantiles).all():
        raise ValueError(f"edges need finite healthy scores, got {quantiles.size} of which not all are finite")
    half = (BINS - BEYOND) // 2
    grid_levels = np.concatenate([np.linspace(0, 1, half), 1 - np.logspace(0, -6, half)])
    healthy_edges = np.interp(np.unique(grid_levels), levels, quantiles)
    low, high = float(quantiles[0]), float(quantiles[-1])
    tail_edges = high + np.linspace(0, 2 * (high - low), BEYOND)
    return np.unique(np.concatenate([healthy_edges, tail_edges]))


def count(
    scores: Float[np.ndarray, " n"], anomalous: Bool[np.ndarray, " n"], edges: Float[np.ndarray, " b"]
) -> Histogram:
    """The counts of one part of the places; ValueError if a score is nan."""
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are no numbers (nan)")
    bins = np.searchsorted(edges, scores, side="left")
    normal, lesion = (np.bincount(bins[mask], minlength=edges.size + 1) for mask in (~anomalous, anomalous))
    return Histogram(edges, normal, lesion)
