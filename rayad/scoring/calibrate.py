"""What healthy patients score: conformal p-values, healthy quantiles and thresholds.

Built from K calibration patients that serve nothing else. p is the probability, over healthy
patients, of a score at least as high. If the new patient is healthy, it is as likely as each of the K
to have the highest score of all K + 1. So it counts itself, and p cannot be below 1 / (K + 1): K
belongs beside every p.

Places of one patient resemble each other, and so do its images: only patients are exchangeable.
Places and images therefore use hierarchical conformal prediction (Lee, Barber and Willett,
arXiv 2306.06342), p = (1 + sum_k mean_i 1[s_ki >= s]) / (K + 1): valid for a place (image) drawn at
random from a new healthy patient. An exam uses one number a patient, the maximum over its images,
p = (1 + #{k: s_k >= s}) / (K + 1): valid where patients have about as many images as here. A finding is
judged among findings, by its highest place, as images among images: of the patients that have any.

Where no patient is left for calibration, validation patients say what healthy scores are: then K is 0 and every p 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rayad.arrays import Grid
from rayad.errors import DatasetError, FormatError
from rayad.scoring.regions import ALARM, peaks

SURVIVAL_POINTS = 1024
"""Points of a patient's compressed survival function: a place's p is too large by less than 1/1024, never too small."""
ENOUGH = 20
"""Healthy patients; with fewer no p-value is below 0.05."""
FINDINGS = ("finding_scores", "finding_weights")
"""Arrays that are empty where nothing is marked in any healthy image."""
LATER = ("image_means", *FINDINGS)
"""Arrays that older bundles lack."""


def image_score(scores: Grid, top: float = 0.01) -> float:
    """The score of an image: the mean of its highest places.

    Args:
        scores: scores of the places, nan outside the tissue.
        top: share of the tissue places that enter the mean, at least one; 0 takes the maximum.

    Raises:
        ValueError: no place has a score.
    """
    place_scores = scores[~np.isnan(scores)]
    if place_scores.size == 0:
        raise ValueError("an image's score needs at least one place with a score, got none")
    count = max(1, math.ceil(top * place_scores.size))
    return float(np.partition(place_scores, place_scores.size - count)[-count:].mean(dtype=np.float64))


@dataclass(frozen=True)
class Calibration:
    """Healthy scores of K patients; every method is a pure function of a score."""

    exam_scores: Float[np.ndarray, " k"]
    """The highest image score of each patient, ascending."""
    image_scores: Float[np.ndarray, " i"]
    """The score of each image, ascending."""
    image_weights: Float[np.ndarray, " i"]
    """1 / (number of images of that image's patient), in the order of `image_scores`."""
    survival: Float[np.ndarray, " s"]
    """The compressed survival functions of all patients, `SURVIVAL_POINTS` a patient, merged and ascending."""
    levels: Float[np.ndarray, " q"]
    """Levels in [0, 1] of the healthy quantile function, ascending."""
    quantiles: Float[np.ndarray, " q"]
    """The healthy score at each level; every patient weighs the same."""
    top: float = 0.01
    """Share of an image's places that its score is the mean of; see `image_score`."""
    image_means: Float[np.ndarray, " i"] | None = None
    """The mean over each image's places, ascending; None in bundles from before it was kept."""
    finding_scores: Float[np.ndarray, " f"] | None = None
    """The highest score of each region above the alarm, ascending; None in bundles from before it was kept."""
    finding_weights: Float[np.ndarray, " f"] | None = None
    """1 / (number of regions of that region's patient), in the order of `finding_scores`."""
    served: bool = False
    """Whether its patients have served something else, such as early stopping: no p-value can refer to them."""

    @property
    def patients(self) -> int:
        """K, the number of calibration patients."""
        return 0 if self.served else len(self.exam_scores)

    @property
    def few(self) -> str:
        """A warning where so few patients were healthy that p-values say little; empty: they are enough."""
        if self.patients >= ENOUGH:
            return ""
        if self.served:
            return "without calibration patients: scores are compared with validation patients, and every p-value is 1"
        patients = f"{self.patients} healthy patient{'s' * (self.patients > 1)}"
        return f"calibrated on {patients}, fewer than {ENOUGH}: no p-value is below {self.floor:.3g}"

    @property
    def floor(self) -> float:
        """The smallest p-value that K patients can give, 1 / (K + 1)."""
        return 1 / (self.patients + 1)

    def far(self, scores: Grid) -> str:
        """A sentence where an image as a whole is unlike the healthy ones; empty: it is not, or nobody knows.

        It is unlike them where the mean over its places is beyond the highest healthy one, or the lowest, by more than
        that is from the median: a likelihood can be too high as well as too low (Nalisnick et al., "Detecting
        out-of-distribution inputs to deep generative models using typicality", 2019). A lesion is too small a part of
        an image for that.
        """
        if self.image_means is None:
            return ""
        mean, median = float(np.nanmean(scores)), float(np.median(self.image_means))
        lowest, highest = self.image_means[0], self.image_means[-1]
        if 2 * lowest - median <= mean <= 2 * highest - median:
            return ""
        return (
            f"its places score {mean:.4g} on average, those of {self.image_means.size} healthy images {lowest:.4g} to "
            f"{highest:.4g}: it is unlike what was learned from"
        )

    @property
    def images_each(self) -> int:
        """Images that every calibration patient has at least."""
        return round(1 / float(self.image_weights.max()))

    def exam_p(self, score: float) -> float:
        """p of an exam whose highest image score this is."""
        at_least = len(self.exam_scores) - np.searchsorted(self.exam_scores, score, side="left")
        return min(1.0, float((1 + at_least) / (self.patients + 1)))

    def image_p(self, score: float) -> float:
        """p of an image with this `image_score`."""
        first = np.searchsorted(self.image_scores, score, side="left")
        return min(1.0, float((1 + self.image_weights[first:].sum()) / (self.patients + 1)))

    def place_p(self, scores: Grid) -> Grid:
        """p of every place by itself, not adjusted for the number of places; nan where the score is nan."""
        at_least = self.survival.size - np.searchsorted(self.survival, scores, side="left")
        p = np.minimum(1.0, (1 + at_least / SURVIVAL_POINTS) / (self.patients + 1))
        return np.where(np.isnan(scores), np.nan, p)

    def finding_p(self, peaks: Float[np.ndarray, " r"]) -> Float[np.ndarray, " r"] | None:
        """p of findings by their highest places, each by itself; None where healthy ones are not known."""
        if self.finding_scores is None or self.finding_weights is None:
            return None
        first = np.searchsorted(self.finding_scores, peaks, side="left")
        at_least = np.array([self.finding_weights[i:].sum() for i in first])
        with_findings = 0 if self.served else round(self.finding_weights.sum())
        return np.minimum(1.0, (1 + at_least) / (with_findings + 1))

    def healthy_quantile(self, scores: Grid) -> Grid:
        """The share of healthy places that score lower, in [0, 1]; for display, not a p-value. nan stays nan."""
        values, first, ties = np.unique(self.quantiles, return_index=True, return_counts=True)
        steps = np.stack([values, np.nextafter(values, np.inf)], axis=1).ravel()  # a tie is a step, not a slope
        levels = np.stack([self.levels[first], self.levels[first + ties - 1]], axis=1).ravel()
        shares = np.interp(scores, steps, levels)
        return np.where(np.isnan(scores), np.nan, shares)

    def threshold(self, quantile: float) -> float:
        """The score below which this share of healthy places lies; no label of a lesion enters.

        Raises:
            ValueError: the quantile is not in [0, 1].
        """
        if not 0 <= quantile <= 1:
            raise ValueError(f"a healthy quantile must be in [0, 1], not {quantile}")
        return float(np.interp(quantile, self.levels, self.quantiles))

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Plain arrays for a safetensors file; `top` and K are arrays of one element."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("top", "served")}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        return arrays | {"top": np.array([self.top]), "patients": np.array([self.patients])}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> "Calibration":
        """The inverse of `to_tensors`.

        Raises:
            FormatError: an array is missing, is not what its name says, or their sizes do not fit together.
        """
        names = [f.name for f in fields(cls) if f.name not in (*LATER, "served") or f.name in tensors]
        missing = sorted({*names, "patients"} - tensors.keys())
        if missing:
            raise FormatError(f"calibration: arrays {', '.join(missing)} are missing")
        for name in (*names, "patients"):
            _require_numbers(name, tensors[name])
        _require_shares(tensors)
        arrays: dict[str, Any] = {name: tensors[name] for name in names}
        arrays["top"] = float(tensors["top"][0])
        patients = int(tensors["patients"][0])
        calibration = cls(**arrays, served=patients == 0)
        scores = len(calibration.exam_scores)
        if patients not in (0, scores) or calibration.survival.size != scores * SURVIVAL_POINTS:
            raise FormatError(
                f"calibration: {patients} patients do not fit {scores} exam scores "
                f"and {calibration.survival.size} survival points"
            )
        return calibration


def calibrate(patients: Mapping[str, Sequence[Grid]], top: float = 0.01, served: bool = False) -> Calibration:
    """Calibrate on healthy patients.

    Args:
        patients: patient id -> the grids of place scores of its images, nan outside the tissue.
        top: share of places that an image's score is the mean of; see `image_score`.
        served: whether they have served something else, so that no p-value can refer to them.

    Raises:
        DatasetError: no patient, a patient without images, an image without scores or with an infinite one.
    """
    if not patients:
        raise DatasetError("calibration needs at least one healthy patient, got none")
    places = {name: [_inside(name, grid) for grid in grids] for name, grids in patients.items()}
    images = {name: [image_score(grid, top) for grid in grids] for name, grids in patients.items()}
    pooled = {name: np.concatenate(grids) for name, grids in places.items() if grids}
    if len(pooled) < len(patients):
        raise DatasetError(f"calibration: patient {min(patients.keys() - pooled.keys())} has no image")
    scores = np.array([score for values in images.values() for score in values])
    weights = np.array([1 / len(values) for values in images.values() for _ in values])
    order = np.argsort(scores, kind="stable")
    levels = _levels()
    calibration = Calibration(
        exam_scores=np.sort([max(values) for values in images.values()]),
        image_scores=scores[order],
        image_weights=weights[order],
        survival=np.sort(np.concatenate([survival_points(values) for values in pooled.values()])),
        levels=levels,
        quantiles=_quantiles(list(pooled.values()), levels),
        top=top,
        image_means=np.sort([image.mean() for values in places.values() for image in values]),
        served=served,
    )
    return replace(calibration, **_findings(calibration, patients))


def _findings(calibration: Calibration, patients: Mapping[str, Sequence[Grid]]) -> dict[str, np.ndarray]:
    """Highest scores and weights of the regions that would be marked in the patients' own images."""
    by_patient = [
        np.concatenate([peaks(grid, np.nan_to_num(calibration.healthy_quantile(grid)) > ALARM) for grid in grids])
        for grids in patients.values()
    ]
    scores = np.concatenate(by_patient)
    weights = np.concatenate([np.full(values.size, 1 / max(1, values.size)) for values in by_patient])
    order = np.argsort(scores, kind="stable")
    return {"finding_scores": scores[order], "finding_weights": weights[order]}


def survival_points(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " s"]:
    """A survival function S(s) = mean_i 1[s_i >= s] in Q = `SURVIVAL_POINTS` points u_0 >= u_1 >= ...

    u_j is the score of descending rank floor(j n / Q) + 1. Of the r scores >= s, the points >= s are those
    with j < r Q / n, so mean_j 1[u_j >= s] = ceil(r Q / n) / Q: in [S(s), S(s) + 1/Q), never too small.
    """
    descending = np.sort(scores)[::-1].astype(np.float64)
    return descending[_ranks(descending.size)]


def _ranks(size: int) -> Int[np.ndarray, " s"]:
    return np.arange(SURVIVAL_POINTS, dtype=np.int64) * size // SURVIVAL_POINTS


def _require_numbers(name: str, array: np.ndarray) -> None:
    """FormatError unless an array is a row of finite numbers, ascending where numbers are looked up in it."""
    if array.ndim != 1 or (array.size == 0 and name not in FINDINGS) or array.dtype.kind not in "fiu":
        raise FormatError(f"calibration: {name} is a row of numbers, not {array.dtype} of shape {array.shape}")
    if not np.isfinite(array).all():
        raise FormatError(f"calibration: {name} holds numbers that are not finite")
    if name not in ("image_weights", "finding_weights") and (array[1:] < array[:-1]).any():
        raise FormatError(f"calibration: {name} is not ascending")


def _require_shares(tensors: Mapping[str, np.ndarray]) -> None:
    """FormatError unless arrays that belong together have one size, and shares are between 0 and 1."""
    for first, second in (("image_scores", "image_weights"), ("levels", "quantiles"), FINDINGS):
        if np.size(tensors.get(first, ())) != np.size(tensors.get(second, ())):
            raise FormatError(f"calibration: {first} and {second} have different sizes")
    for name in ("image_weights", "levels", "top", "finding_weights"):
        if not np.size(tensors.get(name, ())):
            continue
        lowest, highest = tensors[name].min(), tensors[name].max()
        if lowest < 0 or highest > 1:
            raise FormatError(f"calibration: {name} are shares, from 0 to 1, not {lowest:g} to {highest:g}")


def _inside(patient: str, grid: Grid) -> Float[np.ndarray, " n"]:
    inside = grid[~np.isnan(grid)].astype(np.float64)
    if inside.size == 0:
        raise DatasetError(f"calibration: an image of patient {patient} has no place with a score")
    if not np.isfinite(inside).all():
        raise DatasetError(f"calibration: an image of patient {patient} has an infinite score")
    return inside


def _levels() -> Float[np.ndarray, " q"]:
    """Even steps of 1/1024, and even steps of log(1 - level) from 0.999 to 0.99999, where alarms live."""
    return np.unique(np.concatenate([np.linspace(0, 1, 1025), 1 - np.logspace(-3, -5, 201)]))


def _quantiles(patient_scores: list[np.ndarray], levels: Float[np.ndarray, " q"]) -> Float[np.ndarray, " q"]:
    scores = np.concatenate(patient_scores)
    weights = np.concatenate([np.full(values.size, 1 / values.size) for values in patient_scores])
    order = np.argsort(scores, kind="stable")
    cumulative = np.cumsum(weights[order]) / len(patient_scores)
    index = np.searchsorted(cumulative, levels, side="left")
    return scores[order][np.minimum(index, scores.size - 1)]
