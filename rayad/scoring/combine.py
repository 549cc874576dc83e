"""From the scores of single places to the score that a heatmap shows, and from several scores to one.

Scores of different detectors have no common unit. What they have in common is how rare they are in healthy tissue: the
pooled share of healthy places that score as high, of healthy patients that are neither learned from nor calibrated
on. The combined scores depend on each other, so what comes out is no p-value: it is a new score and calibrated again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from scipy import ndimage

from rayad.arrays import Grid, GridMask
from rayad.errors import ImageError, OptionError
from rayad.options import Within
from rayad.scoring.calibrate import Calibration

TAIL = 0.99
"""Healthy quantile above which rarity is extrapolated: few healthy places are higher, and none as high as a lesion."""

WIDEST = 64
"""Places over which an aggregation reaches at most."""


@dataclass(frozen=True)
class Aggregation:
    """A part of the score's configuration: a speck detector needs a window, a mass detector a smooth map."""

    kind: str = "none"
    """none, gaussian, or maximum."""
    size_mm: Annotated[float, Within(0, 100)] = 0.0
    """Standard deviation of the Gaussian, or radius of the maximum's window, mm."""

    def __post_init__(self) -> None:
        if self.kind not in ("none", "gaussian", "maximum"):
            raise OptionError(f"no aggregation {self.kind!r}; rayad has none, gaussian, maximum")


PLAIN = Aggregation()
"""The scores as they are."""


def aggregate(scores: Grid, tissue: GridMask, aggregation: Aggregation, step_mm: float) -> Grid:
    """Aggregate over the tissue around each place; nan outside the tissue stays nan.

    Args:
        step_mm: distance of neighbouring places.

    Raises:
        ImageError: it would reach over too many places.
    """
    size = aggregation.size_mm / step_mm
    if size > WIDEST:
        raise ImageError(
            f"an aggregation of {aggregation.size_mm:g} mm reaches over {size:.4g} places, {step_mm:g} mm apart, more "
            f"than {WIDEST}; raise step_mm"
        )
    if aggregation.kind == "gaussian":
        weight = ndimage.gaussian_filter(tissue.astype(np.float64), size)
        total = ndimage.gaussian_filter(np.where(tissue, scores, 0).astype(np.float64), size)
        scores = (total / np.maximum(weight, 1e-12)).astype(scores.dtype)
    elif aggregation.kind == "maximum":
        reach = int(size)
        y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
        scores = ndimage.maximum_filter(np.where(tissue, scores, -np.inf), footprint=x * x + y * y <= size * size)
    return np.where(tissue, scores, np.nan).astype(scores.dtype)


def rarity(scores: Grid, calibration: Calibration) -> Grid:
    """-log of the share of healthy places that score as high, in nats; nan stays nan.

    Above the 0.99 quantile the excess is taken for exponential, with the mean that it has in healthy places: no two
    scores beyond everything healthy are the same.
    """
    start = calibration.threshold(TAIL)
    tail_scores = calibration.quantiles[calibration.levels >= TAIL]
    levels = calibration.levels[calibration.levels >= TAIL]
    mean = float(np.trapezoid(tail_scores - start, levels) / (1 - TAIL)) or 1.0
    share = np.minimum(calibration.healthy_quantile(scores), TAIL)
    return -np.log1p(-share) + np.maximum(scores - start, 0) / mean


Scored = Sequence[tuple[Grid, Calibration]]
"""The scores of each member, and what healthy patients score with it."""


def fisher(scored: Scored) -> Grid:
    """Sum of the rarities, -sum log p (Fisher 1932); what no member scores is nan."""
    return _stacked(scored, lambda rarities: np.nanmean(rarities, 0) * len(rarities))


def minimum(scored: Scored) -> Grid:
    """Rarity of the member that finds a place rarest, -log min p (Tippett 1931)."""
    return _stacked(scored, lambda rarities: np.nanmax(rarities, 0))


def mean(scored: Scored) -> Grid:
    """Mean share of healthy places that score lower: a mean of ranks."""
    return _stacked(scored, lambda rarities: np.nanmean(-np.expm1(-rarities), 0))


def spread(scored: Scored) -> Grid:
    """Standard deviation of the rarities: how much the members, say of several seeds, disagree."""
    return _stacked(scored, lambda rarities: np.nanstd(rarities, 0))


def difference(scored: Scored) -> Grid:
    """The first member's score minus the second's: of two likelihoods the logarithm of their ratio, in nats."""
    (first, _), (second, _) = scored
    return first - second


RULES: dict[str, Callable[[Scored], Grid]] = {
    "fisher": fisher,
    "minimum": minimum,
    "mean": mean,
    "spread": spread,
    "difference": difference,
}
"""Name of the rule -> how members' scores are combined."""


def _stacked(scored: Scored, rule: Callable[[np.ndarray], np.ndarray]) -> Grid:
    rarities = np.stack([rarity(scores, calibration) for scores, calibration in scored])
    all_nan = np.isnan(rarities).all(0)
    return np.where(all_nan, np.nan, rule(np.where(all_nan, 0, rarities)))
