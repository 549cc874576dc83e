"""Figures against healthy patients that no detector learned from: each is judged by the detectors of its fold.

The healthy patients are divided into folds. For each a recipe is run whose detectors learned from the healthy patients
of the other folds, and diseased patients, whom none learned from, are scored by all of them. A diseased patient is
compared with a healthy one under the detectors that left the healthy one out, so a pair never mixes the scores of two
detectors, and every healthy patient counts. Patients are drawn anew for intervals and tests; detectors are not trained
anew, so the luck of a training is not in them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from rayad.evaluation.bootstrap import draw, interval
from rayad.evaluation.metrics import ANY, PooledPlaces
from rayad.evaluation.results import Results, Row
from rayad.evaluation.significance import concordance, of_draws
from rayad.evaluation.table import holm_adjusted

LEVELS = (0.05, 0.01)
"""Of p-values, at which false positives are counted; the first also for the sensitivity."""
DETECTED = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
"""Standard errors that a difference must have to be found at p < 0.05 in four of five repetitions."""
NO_PAIRS = "there are no pairs of images to compare"


@dataclass(frozen=True)
class ImageScore:
    """An image and its score under the detector of a fold."""

    patient_id: str
    diseased: bool
    lesions: tuple[str, ...]
    score: float

    def holds(self, kind: str) -> bool:
        """Whether it has such a lesion."""
        return (self.diseased and kind == ANY) or kind in self.lesions


Fold = Sequence[ImageScore]


@dataclass(frozen=True)
class Pairs:
    """Of patients i and j, summed over the folds: in how many pairs of images that of i, which is positive, scores
    above that of j, which is negative, ties half; and how many pairs there are."""

    right: Float[np.ndarray, "p p"]
    number: Float[np.ndarray, "p p"]
    diseased: Bool[np.ndarray, " p"]

    def auc(self, resamples: int, seed: int = 0) -> Float[np.ndarray, " r"]:
        """AUROC, observed and then of each draw of patients; nan where a draw has no pair."""
        w = np.vstack([np.ones(self.diseased.size), draw(self.diseased, resamples, seed)])
        with np.errstate(invalid="ignore"):
            return ((w @ self.right) * w).sum(1) / ((w @ self.number) * w).sum(1)


def rows(
    folds: Sequence[Results], detectors: Sequence[str], kinds: Sequence[str], resamples: int = 10_000
) -> list[Row]:
    """A row a detector and kind of lesion.

    `exam_auc` is of diseased patients, their highest score, against healthy ones; `other_breast_auc` of images with
    such a lesion against those images of diseased patients that have none, under each fold's detectors alike;
    `sensitivity` the share of diseased patients whose cross-conformal p-value is at most 0.05 (Vovk 2015: one more than
    the healthy patients that score as high, over one more than there are); `false_positive_rate` the share of healthy
    patients whose p-value among those of the other folds, each under its own fold's detector, is at most a level.
    Shares have exact intervals.
    """
    made: list[Row] = []
    for detector in detectors:
        images = [_images(results, detector) for results in folds]
        of_all_kinds = {"folds": len(folds), "false_positive_rate": _false_positive_rate(images)}
        for kind in kinds:
            exams = _against_healthy(images, kind)
            figures = {"exam_auc": exams, "other_breast_auc": _other_breast(images, kind)}
            row: Row = {"detector": detector, "lesion": kind, **of_all_kinds, "sensitivity": _sensitivity(exams)}
            row |= {"diseased": int(exams.diseased.sum()), "healthy": int((~exams.diseased).sum())}
            made.append(row | {name: _figure(pairs, resamples) for name, pairs in figures.items()})
    return made


def comparisons(
    folds: Sequence[Results], pairs: Sequence[tuple[str, str]], kinds: Sequence[str], resamples: int = 10_000
) -> list[Row]:
    """The difference of two detectors' exam AUC, both in the same draws of patients; p adjusted by Holm over all.

    `detectable` is the least difference that so many patients show, as the spread of this one tells.
    """
    made: list[Row] = []
    for (a, b), kind in product(pairs, kinds):
        first, second = (_against_healthy([_images(results, name) for results in folds], kind) for name in (a, b))
        head: Row = {"a": a, "b": b, "lesion": kind, "figure": "exam_auc"}
        if not first.number.sum():
            made.append(head | {"difference": None, "p": None, "detectable": None, "note": NO_PAIRS})
            continue
        difference = first.auc(resamples) - second.auc(resamples)
        detectable = DETECTED * float(np.nanstd(difference[1:], ddof=1))
        made.append(head | vars(of_draws(difference, first.diseased)) | {"detectable": detectable})
    return holm_adjusted(made)


def detectable(diseased: int, healthy: int, auc: float = 0.7, correlation: float = 0.5) -> float:
    """The least difference of two exam AUCs that is found at p < 0.05 in four of five repetitions.

    Args:
        auc: the lower of the two.
        correlation: of the two estimates, which share their patients (Hanley and McNeil 1983).
    """
    lower, difference = _standard_error(auc, diseased, healthy), 0.0
    for _ in range(50):  # the upper one's error depends on the difference
        upper = _standard_error(min(auc + difference, 1 - 1e-9), diseased, healthy)
        difference = DETECTED * float(np.sqrt(lower**2 + upper**2 - 2 * correlation * lower * upper))
    return difference


def _images(results: Results, detector: str) -> Fold:
    """The images that have a label."""
    return [
        ImageScore(row["patient_id"], row["diseased"], tuple(row["lesions"]), score)
        for row, score in zip(results.images, results.scores[detector]["score"], strict=True)
        if row["diseased"] is not None
    ]


def _against_healthy(folds: Sequence[Fold], kind: str) -> Pairs:
    """Patients with this kind against healthy ones, each by its highest score, in the fold of the healthy one."""
    with_kind = set.intersection(*({image.patient_id for image in fold if image.holds(kind)} for fold in folds))
    compared = []
    for fold in folds:
        healthy, highest = _healthy(fold), _highest(fold)
        compared.append([*((p, True, highest[p]) for p in with_kind), *((p, False, s) for p, s in healthy.items())])
    return _pairs(compared, with_kind)


def _other_breast(folds: Sequence[Fold], kind: str) -> Pairs:
    """Images with this kind against images without a lesion, all of diseased patients."""
    diseased = {image.patient_id for fold in folds for image in fold if image.diseased}
    compared = [
        [
            (image.patient_id, image.holds(kind), image.score)
            for image in fold
            if image.holds(kind) or (image.patient_id in diseased and not image.diseased)
        ]
        for fold in folds
    ]
    return _pairs(compared, diseased)


def _pairs(folds: Sequence[Iterable[tuple[str, bool, float]]], diseased: set[str]) -> Pairs:
    """Of (patient, positive, score) of every image in each fold; the patients that are not `diseased` are healthy."""
    others = {patient for fold in folds for patient, _, _ in fold} - diseased
    patients = (*sorted(diseased), *sorted(others))
    place, is_diseased = {patient: n for n, patient in enumerate(patients)}, np.arange(len(patients)) < len(diseased)
    right, number = np.zeros((2, len(patients), len(patients)))
    for fold in folds:
        owner = np.array([place[patient] for patient, _, _ in fold], dtype=np.int64)
        positive = np.array([is_positive for _, is_positive, _ in fold], dtype=bool)
        scores = np.array([score for _, _, score in fold], dtype=float)
        right += concordance(PooledPlaces(scores, positive, positive.astype(float), owner, patients, is_diseased))
        number += np.outer(*(np.bincount(owner[mask], minlength=len(patients)) for mask in (positive, ~positive)))
    return Pairs(right, number, is_diseased)


def _figure(pairs: Pairs, resamples: int) -> Row:
    if not pairs.number.sum():
        return _null(NO_PAIRS)
    values = pairs.auc(resamples)
    limits, reason = interval(values[1:], pairs.diseased)
    low, high = limits or (None, None)
    return {"value": float(values[0]), "low": low, "high": high} | ({"reason": reason} if reason else {})


def _sensitivity(exams: Pairs) -> Row:
    """Share of the diseased patients with a cross-conformal p of at most the first level."""
    above = np.floor(exams.right[exams.diseased][:, ~exams.diseased])  # a tie is no higher score
    diseased, healthy = above.shape
    return _share(int(((1 + healthy - above.sum(1)) / (healthy + 1) <= LEVELS[0]).sum()), diseased)


def _false_positive_rate(folds: Sequence[Fold]) -> dict[str, Row]:
    """Level -> share of the healthy patients with a p of at most so much among those of the other folds."""
    highest = [np.fromiter(_healthy(fold).values(), float) for fold in folds]
    others = [np.concatenate([*highest[:n], *highest[n + 1 :]]) for n in range(len(highest))]
    fewest = min(reference.size for reference in others)
    p = np.concatenate(
        [
            (1 + (reference >= own[:, None]).sum(1)) / (reference.size + 1)
            for own, reference in zip(highest, others, strict=True)
        ]
    )
    return {
        f"{level:g}": _share(int((p <= level).sum()), p.size)
        if (fewest + 1) * level >= 1
        else _null(f"of {fewest} healthy patients no p-value is below 1/{fewest + 1}")
        for level in LEVELS
    }


def _healthy(fold: Fold) -> dict[str, float]:
    """The highest score of each healthy patient."""
    diseased = {image.patient_id for image in fold if image.diseased}
    return {patient: score for patient, score in _highest(fold).items() if patient not in diseased}


def _highest(fold: Fold) -> dict[str, float]:
    """The highest score of each patient."""
    scores: dict[str, float] = {}
    for image in fold:
        scores[image.patient_id] = max(image.score, scores.get(image.patient_id, -np.inf))
    return scores


def _share(count: int, number: int) -> Row:
    """A share with its exact 95 % interval (Clopper and Pearson 1934)."""
    if not number:
        return _null("there are no patients")
    limits = stats.binomtest(count, number).proportion_ci(0.95, "exact")
    return {"value": count / number, "low": float(limits.low), "high": float(limits.high)}


def _null(reason: str) -> Row:
    return {"value": None, "low": None, "high": None, "reason": reason}


def _standard_error(auc: float, diseased: int, healthy: int) -> float:
    """Of an AUROC (Hanley and McNeil 1982)."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (diseased - 1) * (q1 - auc**2) + (healthy - 1) * (q2 - auc**2)
    return float(np.sqrt(variance / (diseased * healthy)))
