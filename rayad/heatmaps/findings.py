"""What a detector marks in an image, as a list that a reader can answer: places above the alarm that touch."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from rayad.arrays import Grid
from rayad.scoring.calibrate import Calibration
from rayad.scoring.regions import regions

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
    false_discovery_rate: float | None = None
    """Share of healthy findings that is expected among those of the image that score as high; None: not known."""


def findings(
    scores: Grid,
    healthy_quantile: Grid,
    alarm: float,
    step_mm: float,
    most: int = MOST,
    calibration: Calibration | None = None,
) -> tuple[list[MarkedRegion], int]:
    """The most unusual regions of an image above the alarm, and how many there are in all.

    Args:
        scores: gh gw, nan outside the tissue.
        healthy_quantile: of the same places.
        alarm: the quantile above which a place is marked.
        step_mm: distance of neighbouring places.
        calibration: what healthy findings score; None: no false discovery rate is told.
    """
    labels, number = regions(np.nan_to_num(healthy_quantile, nan=0.0) > alarm)
    places = np.flatnonzero(labels)
    places = places[np.argsort(-scores.ravel()[places], kind="stable")]  # the highest first
    _, first, sizes = np.unique(labels.ravel()[places], return_index=True, return_counts=True)
    order = np.argsort(-scores.ravel()[places[first]], kind="stable")
    rates = _false_discovery_rates(scores.ravel()[places[first[order]]], calibration)
    listed = []
    for region, rate in zip(order[:most], rates, strict=False):
        row, column = np.unravel_index(places[first[region]], scores.shape)
        listed.append(
            MarkedRegion(
                row_mm=float((row + 0.5) * step_mm),
                col_mm=float((column + 0.5) * step_mm),
                size_mm2=float(sizes[region] * step_mm**2),
                score=float(scores[row, column]),
                healthy_quantile=float(healthy_quantile[row, column]),
                false_discovery_rate=rate,
            )
        )
    return listed, number


def _false_discovery_rates(peaks: Float[np.ndarray, " r"], calibration: Calibration | None) -> list[float] | list[None]:
    """Of all findings of an image (Benjamini and Hochberg 1995), by their conformal p-values, which depend on each
    other in a way that keeps the guarantee (Bates et al., "Testing for outliers with conformal p-values", 2023)."""
    p = calibration.finding_p(peaks) if calibration else None
    if p is None or not len(p):
        return [None] * len(peaks)
    return stats.false_discovery_control(p, method="bh").tolist()
