"""95 % intervals by resampling patients (Efron and Tibshirani 1993, percentile method).

Places and images of one patient depend on each other, so patients are drawn, within diseased and healthy
ones apart. A draw is a vector of weights w; counts over places are sums over patients, so a pooled figure
of a draw is read off w @ histograms: one row of 4,096 bins a patient, over fixed edges.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from rayad.evaluation import froc
from rayad.evaluation.metrics import PooledPlaces

BINS = 4096
MIN_PATIENTS = 5
"""Fewer patients of a class give no interval: their resamples repeat a handful of values."""

Interval = tuple[float, float]
Cumulated = Callable[[np.ndarray, np.ndarray], np.ndarray]


def draw(strata: Bool[np.ndarray, " p"], resamples: int, seed: int) -> Float[np.ndarray, "r p"]:
    """How often each draw holds each patient; a stratum keeps its number of patients."""
    generator = np.random.default_rng(seed)
    weights = np.zeros((resamples, strata.size))
    for stratum in (True, False):
        members = np.flatnonzero(strata == stratum)
        if members.size:
            weights[:, members] = generator.multinomial(
                members.size, np.full(members.size, 1 / members.size), resamples
            )
    return weights


def interval(values: Float[np.ndarray, " r"], strata: Bool[np.ndarray, " p"]) -> tuple[Interval | None, str]:
    """The central 95 % of the resampled values, or None and the reason why there is no interval."""
    sizes = [int(strata.sum()), int((~strata).sum())]
    smallest = min(size for size in sizes if size)
    if smallest < MIN_PATIENTS:
        return None, f"an interval needs {MIN_PATIENTS} patients of each class, got {smallest}"
    low, high = np.nanpercentile(values, [2.5, 97.5])
    if low == high:
        return None, "all resamples give the same value, which says nothing about its spread"
    return (float(low), float(high)), ""


def edges(scores: Float[np.ndarray, " n"], anomalous: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " b"]:
    """At most BINS - 1 ascending edges: all distinct scores where they are few, else quantiles of both classes."""
    distinct = np.unique(scores)
    if distinct.size < BINS:
        return distinct
    levels = np.linspace(0, 1, BINS // 2 + 1)[1:-1]
    classes = [s for s in (scores[anomalous], scores[~anomalous]) if s.size]
    return np.unique(np.concatenate([np.quantile(s, levels) for s in classes]))


def histograms(
    scores: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    patient: Int[np.ndarray, " n"],
    patients: int,
    bin_edges: Float[np.ndarray, " b"],
) -> Float[np.ndarray, "p t"]:
    """Weight of each patient's scores in each bin, the highest bin first; bins are (edge, next edge], tails open."""
    bins = bin_edges.size + 1
    slot = patient * bins + (bins - 1 - np.searchsorted(bin_edges, scores, side="left"))
    return np.bincount(slot, weights, minlength=patients * bins).astype(float).reshape(patients, bins)


def pooled(
    pool: PooledPlaces, measures: dict[str, Cumulated], weights: Float[np.ndarray, "r p"]
) -> dict[str, np.ndarray]:
    """Resampled values of figures that are read off the cumulative counts of places.

    Args:
        pool: the places.
        measures: name -> function of (tp, fp), such as `metrics.area`; a name that ends in "_by_lesion" gets the
            cumulated shares of lesions as tp.
        weights: draws, over `pool.patients`.
    """
    bin_edges = edges(pool.scores, pool.anomalous)
    tables = [
        histograms(pool.scores, mask.astype(float), pool.patient, len(pool.patients), bin_edges)
        for mask in (pool.anomalous, pool.share, ~pool.anomalous)
    ]
    values: dict[str, list[np.ndarray]] = {name: [] for name in measures}
    for rows in np.array_split(weights, max(1, len(weights) // 20)):
        tp, by_lesion, fp = (np.cumsum(rows @ table, axis=1) for table in tables)
        for name, measure in measures.items():
            values[name].append(measure(by_lesion if name.endswith("_by_lesion") else tp, fp))
    return {name: np.concatenate(parts) for name, parts in values.items()}


def sensitivities(marks: froc.Marks, weights: Float[np.ndarray, "r p"]) -> Float[np.ndarray, "r f"]:
    """FROC sensitivities of each draw; exact where the marks that matter have fewer than BINS distinct scores."""
    finite = np.isfinite(marks.scores)
    bin_edges = np.unique(marks.scores[finite])[-(BINS - 1) :]
    detected, alarms = (
        histograms(marks.scores[mask], np.ones(mask.sum()), marks.patient[mask], len(marks.patients), bin_edges)
        for mask in (finite & marks.lesion, finite & ~marks.lesion)
    )
    lesions = np.bincount(marks.patient[marks.lesion], minlength=len(marks.patients)).astype(float)
    parts = [
        froc.sensitivity(
            np.cumsum(rows @ detected, axis=1), np.cumsum(rows @ alarms, axis=1), rows @ marks.images, rows @ lesions
        )
        for rows in np.array_split(weights, max(1, len(weights) // 20))
    ]
    return np.concatenate(parts)


def means(
    values: Float[np.ndarray, " i"], patient: Int[np.ndarray, " i"], weights: Float[np.ndarray, "r p"]
) -> Float[np.ndarray, " r"]:
    """Resampled mean over images, each with its patient (an index into the columns of `weights`)."""
    patients = weights.shape[1]
    return (weights @ np.bincount(patient, values, patients)) / (weights @ np.bincount(patient, minlength=patients))
