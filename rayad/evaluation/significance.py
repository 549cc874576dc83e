"""Do two detectors differ, on the same patients?

Differences are a - b, p-values two-sided. Patients are the units throughout: places and images of one
patient are not independent. Where there are too few patients for a test to speak, p is None and the note
says why; `floor` is the smallest p that so many patients could have given.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from rayad.evaluation.bootstrap import MIN_PATIENTS, draw, interval
from rayad.evaluation.metrics import PooledPlaces, Undefined, require_both

ROUGH = 10
"""Fewer patients of a class make DeLong's normal approximation rough."""


@dataclass(frozen=True)
class Difference:
    """One comparison of two detectors by one figure."""

    test: str
    difference: float
    low: float | None
    """Lower end of the 95 % interval of the difference."""
    high: float | None
    p: float | None
    floor: float
    """The smallest p that this number of patients (or resamples) can give; 0 for a normal approximation."""
    patients: int
    note: str = ""


def wilcoxon(a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]) -> Difference:
    """Paired Wilcoxon signed-rank test over patients, each with the mean over its images.

    Args:
        a: patient id -> a figure of each of its images, such as the image-wise AUROC, by detector a.
        b: the same images by detector b.

    Raises:
        ValueError: the patients or their numbers of images differ.
        Undefined: there is no patient.
    """
    if {k: len(v) for k, v in a.items()} != {k: len(v) for k, v in b.items()}:
        raise ValueError(f"a paired test needs the same images, got {len(a)} and {len(b)} patients that do not match")
    if not a:
        raise Undefined("a paired test needs patients, got none")
    d = np.array([np.mean(a[patient]) - np.mean(b[patient]) for patient in sorted(a)])
    n = int(np.count_nonzero(d))
    floor = min(1.0, 2.0 ** (1 - d.size))
    note = f"{d.size} patients cannot give p below {floor:.2g}" if floor > 0.01 else ""
    p = float(stats.wilcoxon(d[d != 0])[1]) if n else 1.0  # type: ignore[reportArgumentType]  (statistic, p)
    return Difference("Wilcoxon", float(d.mean()), None, None, p, floor, d.size, note)


def unpaired(a: Mapping[str, float], b: Mapping[str, float], resamples: int = 10_000, seed: int = 0) -> Difference:
    """Mann-Whitney test between two groups of patients, each with a figure such as its images' mean AUROC.

    The interval of the difference of the means is by resampling the patients of each group.

    Args:
        a: patient id -> figure, of the one group.
        b: the same of the other group.

    Raises:
        Undefined: a group has no patient.
    """
    if not a or not b:
        raise Undefined(f"two groups need patients, got {len(a)} and {len(b)}")
    x, y = np.array(list(a.values())), np.array(list(b.values()))
    total = x.size + y.size
    floor = min(1.0, 2 / math.comb(total, x.size))
    difference = float(x.mean() - y.mean())
    note = f"{x.size} and {y.size} patients cannot give p below {floor:.2g}" if floor > 0.01 else ""
    p = float(stats.mannwhitneyu(x, y, alternative="two-sided").pvalue)
    if min(x.size, y.size) < MIN_PATIENTS:
        return Difference("Mann-Whitney", difference, None, None, p, floor, total, note)
    generator = np.random.default_rng(seed)
    resampled_means = [
        values[generator.integers(values.size, size=(resamples, values.size))].mean(1) for values in (x, y)
    ]
    low, high = np.percentile(resampled_means[0] - resampled_means[1], [2.5, 97.5])
    return Difference("Mann-Whitney", difference, float(low), float(high), p, floor, total, note)


def concordance(pool: PooledPlaces) -> Float[np.ndarray, "p p"]:
    """Pairs in the right order, ties half, of patient i's anomalous and patient j's normal places.

    With weights w, n_i anomalous and m_j normal places, w C w / ((w n)(w m)) is exactly the pooled AUROC of a draw.
    """
    patients = len(pool.patients)
    positive, owner = pool.scores[pool.anomalous], pool.patient[pool.anomalous]
    table = np.zeros((patients, patients))
    for j in range(patients):
        normal = np.sort(pool.scores[~pool.anomalous & (pool.patient == j)])
        pairs = (np.searchsorted(normal, positive, "left") + np.searchsorted(normal, positive, "right")) / 2
        table[:, j] = np.bincount(owner, pairs, minlength=patients)
    return table


def resampled_auc(pool: PooledPlaces, weights: Float[np.ndarray, "r p"]) -> Float[np.ndarray, " r"]:
    """The exact pooled AUROC of each draw of patients."""
    anomalous, normal = (
        np.bincount(pool.patient[mask], minlength=len(pool.patients)) for mask in (pool.anomalous, ~pool.anomalous)
    )
    right = ((weights @ concordance(pool)) * weights).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return right / ((weights @ anomalous) * (weights @ normal))


def paired_bootstrap(a: PooledPlaces, b: PooledPlaces, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Difference of pooled AUROC, both detectors in the same draws of patients.

    p = 2 min(P(d* <= 0), P(d* >= 0)) with one added to numerator and denominator: its floor is 2 / (resamples + 1).

    Raises:
        ValueError: the pools are not of the same patients and places.
    """
    is_paired = (
        a.patients == b.patients and np.array_equal(a.patient, b.patient) and np.array_equal(a.anomalous, b.anomalous)
    )
    if not is_paired:
        raise ValueError("a paired bootstrap needs the same places of the same patients in both pools")
    require_both(a.anomalous)
    weights = np.vstack([np.ones((1, len(a.patients))), draw(a.diseased, resamples, seed)])
    return of_draws(resampled_auc(a, weights) - resampled_auc(b, weights), a.diseased)


def of_draws(d: Float[np.ndarray, " r"], diseased: Bool[np.ndarray, " p"]) -> Difference:
    """A difference from its observed value, the first, and those of draws of patients.

    Args:
        diseased: whether each patient is, within which they were drawn.
    """
    observed, resampled = float(d[0]), d[1:][~np.isnan(d[1:])]
    floor, patients = 2 / d.size, diseased.size
    limits, reason = interval(resampled, diseased)
    if limits is None:
        p = 1.0 if observed == 0 and patients >= MIN_PATIENTS else None
        return Difference("bootstrap", observed, None, None, p, floor, patients, reason)
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
    p = min(1.0, 2 * float(1 + tail) / (resampled.size + 1))
    return Difference("bootstrap", observed, *limits, p, floor, patients)


def delong(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], anomalous: Bool[np.ndarray, " n"]) -> Difference:
    """DeLong's test of two correlated AUROCs (DeLong, DeLong and Clarke-Pearson, Biometrics 1988).

    Args:
        a: one score a patient, by detector a.
        b: the same patients by detector b.
        anomalous: whether each patient is diseased.

    Raises:
        Undefined: a class is missing.
    """
    require_both(anomalous)
    smallest, n = int(min(anomalous.sum(), (~anomalous).sum())), anomalous.size
    difference, variance = delong_variance(a, b, anomalous)
    note = f"{smallest} patients in the smaller class: the normal approximation is rough" if smallest < ROUGH else ""
    if smallest < MIN_PATIENTS:
        note = f"DeLong needs {MIN_PATIENTS} patients of each class, got {smallest}"
        return Difference("DeLong", difference, None, None, None, 0.0, n, note)
    if variance <= 1e-15:
        equal = abs(difference) < 1e-12
        note = note if equal else "the difference has no variance over these patients"
        return Difference("DeLong", difference, None, None, 1.0 if equal else None, 0.0, n, note)
    error = float(np.sqrt(variance))
    low, high = difference - 1.959964 * error, difference + 1.959964 * error
    p = float(2 * stats.norm.sf(abs(difference) / error))
    return Difference("DeLong", difference, low, high, p, 0.0, n, note)


def delong_variance(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], anomalous: Bool[np.ndarray, " n"]
) -> tuple[float, float]:
    """The difference of the AUROCs and its variance from the patients' placement values; nan with one in a class."""
    places_a, places_b = _placements(a, anomalous), _placements(b, anomalous)
    d10, d01 = places_a[0] - places_b[0], places_a[1] - places_b[1]
    if min(d10.size, d01.size) < 2:
        return float(d10.mean()), float("nan")
    return float(d10.mean()), float(d10.var(ddof=1) / d10.size + d01.var(ddof=1) / d01.size)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values (1979), which control the family-wise error under any dependence; None stays None."""
    ranked = sorted((value, index) for index, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    running = 0.0
    for rank, (value, index) in enumerate(ranked):
        running = max(running, min(1.0, (len(ranked) - rank) * value))
        adjusted[index] = running
    return adjusted


def _placements(
    scores: Float[np.ndarray, " n"], anomalous: Bool[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " x"], Float[np.ndarray, " y"]]:
    """Share of normal patients below each anomalous one, and of anomalous ones above each normal one; ties half."""
    x, y = np.sort(scores[anomalous]), np.sort(scores[~anomalous])
    below = (np.searchsorted(y, scores[anomalous], "left") + np.searchsorted(y, scores[anomalous], "right")) / 2
    not_above = (np.searchsorted(x, scores[~anomalous], "left") + np.searchsorted(x, scores[~anomalous], "right")) / 2
    return below / y.size, 1 - not_above / x.size
