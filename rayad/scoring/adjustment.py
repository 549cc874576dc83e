"""Scores adjusted for the place: how far a score lies above what healthy tissue scores at such a place.

A score that is usual at the skin line is unusual in the fat behind it. Where a place lies is told by its coordinates
(rayad/imaging/position.py). The healthy scores given the place are estimated by nearest neighbours, the simplest
consistent estimate of conditional quantiles (Stone, "Consistent nonparametric regression", Annals of Statistics 1977):
at each of some thousands of knots the median m and the 84 % quantile q of the scores of the nearest healthy places.
Between knots both are means, weighted by the inverse squared distance. A score s becomes

    (s - m) / (q - m), cut to [-3, 6],

so that of a normal distribution it is the number of standard deviations above the mean. Cut scores can be smoothed
without one of them making a lesion of its surroundings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial import KDTree

from rayad.arrays import Grid, GridMask
from rayad.errors import DatasetError, FormatError, OptionError
from rayad.imaging.position import COORDINATES
from rayad.scoring.combine import PLAIN, Aggregation, aggregate

NEIGHBOURS = 300
"""Healthy places whose scores are those of a knot."""
KNOTS, MOST_KNOTS = 4096, 65_536
"""Knots that are learned, and that a bundle may have."""
NEAREST = 8
"""Knots between which a place is interpolated."""
UPPER = 0.8413
"""Quantile of a normal distribution one standard deviation above its mean."""
LOWEST, HIGHEST = -3.0, 6.0
"""To which adjusted scores are cut."""
NARROWEST = 0.05
"""Least spread of a knot, as a share of that of all scores: where healthy scores are all alike, such as 0, any other
would be infinitely far from them."""

Coordinates = Float[np.ndarray, "n 4"]
"""A row a place, see `position`."""


@dataclass(frozen=True)
class Adjustment:
    """Healthy scores given the place."""

    knots: Float[np.ndarray, "k 4"]
    """Coordinates of the knots."""
    medians: Float[np.ndarray, " k"]
    """Median healthy score at each."""
    spreads: Float[np.ndarray, " k"]
    """84 % quantile minus median at each, more than 0."""
    smoothing: Aggregation = PLAIN
    """How the adjusted map is smoothed: at the scale of what is looked for."""

    def adjusted(self, scores: Float[np.ndarray, " n"], coordinates: Coordinates) -> Float[np.ndarray, " n"]:
        """Scores of places as spreads above the healthy median there, cut to [-3, 6]."""
        distances, nearest = KDTree(self.knots).query(coordinates, k=min(NEAREST, len(self.knots)))
        distances, nearest = distances.reshape(len(scores), -1), nearest.reshape(len(scores), -1)
        weights = 1 / (distances**2 + 1e-6)
        weights /= weights.sum(1, keepdims=True)
        medians, spreads = ((weights * values[nearest]).sum(1) for values in (self.medians, self.spreads))
        return np.clip((scores - medians) / spreads, LOWEST, HIGHEST)

    def mapped(self, scores: Grid, tissue: GridMask, coordinates: Float[np.ndarray, "gh gw 4"], step_mm: float) -> Grid:
        """A map of scores, adjusted and smoothed; nan outside the tissue.

        Args:
            step_mm: distance of neighbouring places.

        Raises:
            ImageError: the smoothing would reach over too many places.
        """
        result = np.full_like(scores, np.nan)
        result[tissue] = self.adjusted(scores[tissue], coordinates[tissue])
        return aggregate(result, tissue, self.smoothing, step_mm)

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Plain arrays for a safetensors file."""
        return {"knots": self.knots, "medians": self.medians, "spreads": self.spreads}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], smoothing: Aggregation) -> "Adjustment":
        """The inverse of `to_tensors`.

        Raises:
            FormatError: an array is missing, is not what its name says, or their sizes do not fit together.
        """
        if missing := sorted({"knots", "medians", "spreads"} - tensors.keys()):
            raise FormatError(f"adjustment: arrays {', '.join(missing)} are missing")
        knots, medians, spreads = (tensors[name] for name in ("knots", "medians", "spreads"))
        number = len(knots) if knots.ndim else 0
        if knots.shape != (number, len(COORDINATES)) or not 0 < number <= MOST_KNOTS:
            raise FormatError(
                f"adjustment: knots are 1 to {MOST_KNOTS:,} rows of {len(COORDINATES)} coordinates, not {knots.shape}"
            )
        for name, values in (("knots", knots), ("medians", medians), ("spreads", spreads)):
            if values.dtype.kind != "f" or not np.isfinite(values).all():
                raise FormatError(f"adjustment: {name} holds numbers that are not finite")
            if len(values) != number or (name != "knots" and values.ndim != 1):
                raise FormatError(f"adjustment: {name} has another size than the {number} knots")
        if (spreads <= 0).any():
            raise FormatError("adjustment: a spread is not more than 0")
        return cls(knots, medians, spreads, smoothing)


def adjust(
    images: Sequence[tuple[np.ndarray, np.ndarray]], smoothing: Aggregation = PLAIN, seed: int = 0
) -> Adjustment:
    """Learn what healthy tissue scores at a place.

    Args:
        images: scores (n) and coordinates (n 4) of n places of each healthy image; all places weigh the same.
        seed: of the choice of the knots.

    Raises:
        DatasetError: there is no place, a score is not finite, or all scores are the same.
        OptionError: fewer places than a knot has neighbours.
    """
    if not images:
        raise DatasetError("an adjustment needs at least one healthy image, got none")
    scores = np.concatenate([scores for scores, _ in images]).astype(np.float64)
    coordinates = np.concatenate([places for _, places in images]).astype(np.float64)
    if not np.isfinite(scores).all():
        raise DatasetError("a healthy place has a score that is not finite")
    if len(scores) < NEIGHBOURS:
        raise OptionError(f"an adjustment needs {NEIGHBOURS} healthy places, got {len(scores)}; lower step_mm")
    spread = float(np.ptp(np.quantile(scores, [0.5, UPPER]))) or float(scores.std())
    if spread == 0:
        raise DatasetError(f"all healthy places score {scores[0]:.4g}: there is nothing to adjust")
    chosen = np.random.default_rng(seed).permutation(len(scores))[:KNOTS]
    _, nearest = KDTree(coordinates).query(coordinates[chosen], k=NEIGHBOURS)
    medians, upper = np.quantile(scores[nearest], [0.5, UPPER], axis=1)
    spreads = np.maximum(upper - medians, NARROWEST * spread)
    return Adjustment(
        coordinates[chosen].astype(np.float32), medians.astype(np.float32), spreads.astype(np.float32), smoothing
    )
