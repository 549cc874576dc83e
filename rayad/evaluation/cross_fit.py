"""Figures against healthy patients that no detector learned from: each is judged by the detectors of its fold.

The healthy patients are divided into folds. For each a recipe is run whose detectors learned from the healthy patients
of the other folds, and diseased patients, whom none learned from, are scored by all of them. A diseased patient is
compared with a healthy one under the detectors that left the healthy one out, so a pair never mixes the scores of two
detectors, and every healthy patient counts. Patients are drawn anew for intervals and tests; detectors are not trained
anew, so the luck of a training is not in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from rayad.evaluation import significance
from rayad.evaluation.bootstrap import draw, interval
from rayad.evaluation.metrics import ANY
from rayad.evaluation.results import Results, Row

LEVELS = (0.05, 0.01)
"""Of p-values, at which false alarms are counted."""
SEEN = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
"""Standard errors that a difference must have to be seen at p < 0.05 in four of five repetitions."""

NO_PAIRS = "there are no pairs of images to compare"

Resampled = Float[np.ndarray, " r"]


@dataclass(frozen=True)
class Image:
    """An image under the detector of a fold."""

    patient_id: str
    diseased: bool
    lesions: tuple[str, ...]
    score: float

    def holds(self, kind: str) -> bool:
        """Whether it has such a lesion."""
        return (self.diseased and kind == ANY) or kind in self.lesions


@dataclass(frozen=True)
class Pairs:
    """How often one score is above another, ties half, summed over the images of two patients, and of how many pairs.

    `right[i, j]` and `number[i, j]` are of patients i and j.
    """

    right: Float[np.ndarray, "p q"]
    number: Float[np.ndarray, "p q"]
    patients: tuple[str, ...]
    """Those of the rows, then those of the columns that are no rows; what is drawn."""
    strata: Bool[np.ndarray, " n"]
    rows: tuple[int, ...]
    """Where the patients of the rows are in `patients`."""
    columns: tuple[int, ...]

    def auc(self, resamples: int, seed: int = 0) -> Resampled:
        """AUROC, observed and then of each draw of patients; nan where a draw has no pair."""
        weights = np.vstack([np.ones(len(self.patients)), draw(self.strata, resamples, seed)])
        w, v = weights[:, self.rows], weights[:, self.columns]
        with np.errstate(invalid="ignore"):
            return ((w @ self.right) * v).sum(1) / ((w @ self.number) * v).sum(1)


def images_of(results: Results, detector: str) -> list[Image]:
    """The images that have a label, under a detector."""
    return [
        Image(row["patient_id"], row["diseased"], tuple(row["lesions"]), score)
        for row, score in zip(results.images, results.scores[detector]["score"], strict=True)
        if row["diseased"] is not None
    ]


def rows(
    folds: Sequence[Results], detectors: Sequence[str], kinds: Sequence[str], resamples: int = 10_000
) -> list[Row]:
    """A row a detector and kind of lesion.

    `exam_auc` is of diseased patients, their highest score, against healthy ones; `other_breast_auc` of images with
    such a lesion against those images of diseased patients that have none, under each fold's detectors alike;
    `caught` the share of diseased patients whose cross-conformal p-value is at most 0.05 (Vovk 2015: one more than the
    healthy patients that score as high, over one more than there are); `false_alarms` the share of healthy patients
    whose p-value among those of the other folds, each under its own fold's detector, is at most a level. Shares have
    exact intervals.
    """
    made = []
    for detector, kind in product(detectors, kinds):
        images = [images_of(results, detector) for results in folds]
        against_healthy, other_breast = _against_healthy(images, kind), _other_breast(images, kind)
        row: Row = {"detector": detector, "lesion": kind, "folds": len(folds)}
        row |= {"diseased": len(against_healthy.rows), "healthy": len(against_healthy.columns)}
        row |= {"exam_auc": _figure(against_healthy, resamples), "other_breast_auc": _figure(other_breast, resamples)}
        made.append(row | {"caught": _caught(against_healthy), "false_alarms": _false_alarms(images)})
    return made


def comparisons(
    folds: Sequence[Results], pairs: Sequence[tuple[str, str]], kinds: Sequence[str], resamples: int = 10_000
) -> list[Row]:
    """The difference of two detectors' exam AUC, both in the same draws of patients; p adjusted by Holm over all.

    `seen` is the least difference that so many patients show, as the spread of this one tells.
    """
    made: list[Row] = []
    for (a, b), kind in product(pairs, kinds):
        first, second = (_against_healthy([images_of(r, name) for r in folds], kind) for name in (a, b))
        head = {"a": a, "b": b, "lesion": kind, "figure": "exam_auc"}
        if not first.number.sum():
            made.append(head | {"difference": None, "p": None, "seen": None, "note": NO_PAIRS})
            continue
        difference = first.auc(resamples) - second.auc(resamples)
        spread = float(np.nanstd(difference[1:], ddof=1))
        made.append(head | vars(significance.of_draws(difference, first.strata)) | {"seen": SEEN * spread})
    adjusted = significance.holm([row["p"] for row in made])
    return [row | {"p_holm": p} for row, p in zip(made, adjusted, strict=True)]


def _against_healthy(folds: Sequence[Sequence[Image]], kind: str) -> Pairs:
    """Patients with this kind as rows, healthy ones as columns, under the detectors of the healthy one's fold."""
    diseased = sorted(set.intersection(*({i.patient_id for i in images if i.holds(kind)} for images in folds)))
    columns: dict[str, list[float]] = {}
    for images in folds:
        highest = _highest(images)
        theirs = np.array([highest[patient] for patient in diseased])
        columns |= {p: list((theirs > score) + 0.5 * (theirs == score)) for p, score in _healthy(images).items()}
    healthy = sorted(columns)
    right = np.array([columns[patient] for patient in healthy]).reshape(len(healthy), len(diseased)).T
    return _paired(right, np.ones_like(right), diseased, healthy)


def _other_breast(folds: Sequence[Sequence[Image]], kind: str) -> Pairs:
    """Patients with this kind as rows, diseased ones as columns: images with a lesion and images without."""
    diseased = sorted({image.patient_id for images in folds for image in images if image.diseased})
    place = {patient: number for number, patient in enumerate(diseased)}
    right, number = np.zeros((2, len(diseased), len(diseased)))
    for images in folds:
        without = [image for image in images if image.patient_id in place and not image.diseased]
        columns, scores = [place[image.patient_id] for image in without], np.array([image.score for image in without])
        for image in images:
            if image.holds(kind):
                above = (image.score > scores) + 0.5 * (image.score == scores)
                np.add.at(right[place[image.patient_id]], columns, above)
                np.add.at(number[place[image.patient_id]], columns, 1.0)
    return _paired(right, number, diseased, diseased)


def _paired(right: np.ndarray, number: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Pairs:
    patients = tuple(dict.fromkeys([*rows, *columns]))
    strata = np.isin(patients, rows) if patients else np.zeros(0, bool)
    places = {patient: n for n, patient in enumerate(patients)}
    return Pairs(right, number, patients, strata, tuple(places[p] for p in rows), tuple(places[p] for p in columns))


def _figure(pairs: Pairs, resamples: int) -> Row:
    if not pairs.number.sum():
        return _null(NO_PAIRS)
    values = pairs.auc(resamples)
    limits, reason = interval(values[1:], pairs.strata)
    low, high = limits or (None, None)
    return {"value": float(values[0]), "low": low, "high": high} | ({"reason": reason} if reason else {})


def _caught(pairs: Pairs) -> Row:
    """Share of the diseased patients with a cross-conformal p of at most the first level."""
    number, healthy = pairs.right.shape
    as_high = healthy - np.floor(pairs.right).sum(1)  # ties count as higher
    return _share(int(((1 + as_high) / (healthy + 1) <= LEVELS[0]).sum()), number)


def _false_alarms(folds: Sequence[Sequence[Image]]) -> dict[str, Row]:
    """Level -> share of the healthy patients with a p of at most so much among those of the other folds."""
    highest = [_healthy(images) for images in folds]
    p, fewest = [], len(folds) and min(sum(map(len, highest)) - len(own) for own in highest)
    for number, own in enumerate(highest):
        others = np.concatenate([np.fromiter(o.values(), float) for n, o in enumerate(highest) if n != number])
        p += [(1 + int((others >= score).sum())) / (others.size + 1) for score in own.values()]
    return {
        f"{level:g}": _share(int((np.array(p) <= level).sum()), len(p))
        if (fewest + 1) * level >= 1
        else _null(f"of {fewest} healthy patients no p-value is below 1/{fewest + 1}")
        for level in LEVELS
    }


def _healthy(images: Sequence[Image]) -> dict[str, float]:
    """The highest score of each healthy patient."""
    anomalous = {image.patient_id for image in images if image.diseased}
    return {patient: score for patient, score in _highest(images).items() if patient not in anomalous}


def _highest(images: Sequence[Image]) -> dict[str, float]:
    """The highest score of each patient."""
    scores: dict[str, float] = {}
    for image in images:
        scores[image.patient_id] = max(image.score, scores.get(image.patient_id, -np.inf))
    return scores


def _null(reason: str) -> Row:
    return {"value": None, "low": None, "high": None, "reason": reason}


def _share(count: int, number: int) -> Row:
    """A share with its exact 95 % interval (Clopper and Pearson 1934)."""
    if not number:
        return _null("there are no patients")
    limits = stats.binomtest(count, number).proportion_ci(0.95, "exact")
    return {"value": count / number, "low": float(limits.low), "high": float(limits.high)}


def _standard_error(auc: float, diseased: int, healthy: int) -> float:
    """Of an AUROC (Hanley and McNeil 1982)."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (diseased - 1) * (q1 - auc**2) + (healthy - 1) * (q2 - auc**2)
    return float(np.sqrt(variance / (diseased * healthy)))


def seen(diseased: int, healthy: int, auc: float = 0.7, correlation: float = 0.5) -> float:
    """The least difference of two exam AUCs that is seen at p < 0.05 in four of five repetitions.

    Args:
        auc: the lower of the two.
        correlation: of the two estimates, which share their patients (Hanley and McNeil 1983).
    """
    one = _standard_error(auc, diseased, healthy)
    difference = 0.0
    for _ in range(50):  # the upper one's error depends on the difference
        other = _standard_error(min(auc + difference, 1 - 1e-9), diseased, healthy)
        difference = SEEN * float(np.sqrt(one**2 + other**2 - 2 * correlation * one * other))
    return difference
