"""Cross-fitted figures: by enumeration of pairs, by sklearn, and by simulation."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from rayad.evaluation.cross_fit import DETECTED, comparisons, detectable, rows
from rayad.evaluation.results import Results

DISEASED, HEALTHY = 12, 10


def fold(number: int, shift: float, noise: int = 0) -> Results:
    """Two images a patient: all diseased patients, of whom one breast has a mass, and every second healthy one."""
    generator, images, scores = np.random.default_rng([number, noise]), [], []
    patients = [(f"d{n}", True) for n in range(DISEASED)]
    patients += [(f"h{n}", False) for n in range(HEALTHY) if n % 2 == number]
    for patient, diseased in patients:
        for side in "LR":
            with_mass = diseased and side == "L"
            row = {"exam_id": f"{patient}{side}", "patient_id": patient, "diseased": with_mass}
            images.append(row | {"lesions": ["mass"] if with_mass else []})
            scores.append(round(float(generator.normal(10 * number + shift * with_mass)), 1))  # rounded: there are ties
    by_detector = {"good": {"score": scores}}
    return Results(dataset="x", recipe="x", commit="x", rows=[], comparisons=[], images=images, scores=by_detector)


def highest(results: Results, detector: str = "good") -> dict[str, float]:
    scores: dict[str, float] = {}
    for row, score in zip(results.images, results.scores[detector]["score"], strict=True):
        scores[row["patient_id"]] = max(score, scores.get(row["patient_id"], -np.inf))
    return scores


def test_exam_auc_is_that_of_each_fold_weighted_by_its_healthy_patients():
    folds = [fold(0, 1.0), fold(1, 1.0)]
    (row,) = rows(folds, ["good"], ["mass"])
    aucs = []
    for results in folds:
        scores = highest(results)
        aucs.append(roc_auc_score([name[0] == "d" for name in scores], list(scores.values())))
    assert (row["diseased"], row["healthy"], row["folds"]) == (DISEASED, HEALTHY, 2)
    assert row["exam_auc"]["value"] == pytest.approx(np.mean(aucs), abs=1e-12)  # each fold has half of them
    assert row["exam_auc"]["low"] < row["exam_auc"]["value"] < row["exam_auc"]["high"]


def test_the_other_breast_is_compared_under_the_same_detector():
    folds = [fold(0, 1.0), fold(1, 1.0)]
    (row,) = rows(folds, ["good"], ["mass"])
    aucs = []
    for results in folds:
        pairs = zip(results.images, results.scores["good"]["score"], strict=True)
        own = [(image["diseased"], score) for image, score in pairs if image["patient_id"][0] == "d"]
        aucs.append(roc_auc_score([diseased for diseased, _ in own], [score for _, score in own]))
    assert row["other_breast_auc"]["value"] == pytest.approx(np.mean(aucs), abs=1e-12)


def test_false_positives_and_the_sensitivity_are_counted():
    number = 50  # healthy patients of each of two folds
    folds = []
    for fold_number in range(2):
        scores = np.random.default_rng(fold_number).normal(size=number)
        images = [{"exam_id": f"{fold_number}-{n}", "patient_id": f"{fold_number}-{n}"} for n in range(number)]
        images = [image | {"diseased": False, "lesions": []} for image in images]
        ill = [{"exam_id": f"d{n}", "patient_id": f"d{n}", "diseased": True, "lesions": ["mass"]} for n in range(4)]
        all_scores = [*scores, -9.0, 0.0, 9.0, 9.0]
        by_detector = {"good": {"score": list(map(float, all_scores))}}
        folds.append(
            Results(
                dataset="x", recipe="x", commit="x", rows=[], comparisons=[], images=images + ill, scores=by_detector
            )
        )
    (row,) = rows(folds, ["good"], ["mass"])
    one, other = (np.array(results.scores["good"]["score"][:number]) for results in folds)
    p = [(1 + (o >= s).sum()) / (number + 1) for a, o in ((one, other), (other, one)) for s in a]
    assert row["false_positive_rate"]["0.05"]["value"] == np.mean(np.array(p) <= 0.05) > 0
    low, high = (row["false_positive_rate"]["0.05"][end] for end in ("low", "high"))
    assert stats.binom.sf(sum(np.array(p) <= 0.05) - 1, 2 * number, low) == pytest.approx(0.025)  # Clopper and Pearson
    assert stats.binom.cdf(sum(np.array(p) <= 0.05), 2 * number, high) == pytest.approx(0.025)
    assert row["false_positive_rate"]["0.01"]["reason"] == "of 50 healthy patients no p-value is below 1/51"
    assert row["sensitivity"]["value"] == 0.5


def test_two_detectors_are_compared_in_the_same_draws():
    folds = []
    for number in range(2):
        good, poor = fold(number, 2.0), fold(number, 0.0, noise=1)
        folds.append(replace(good, scores=good.scores | {"poor": poor.scores["good"]}))
    better, same = comparisons(folds, [("good", "poor"), ("good", "good")], ["mass"])
    assert better["difference"] > 0.2
    assert better["p"] < 0.05 <= same["p"]
    assert (same["difference"], same["detectable"]) == (0, 0)
    assert better["p_holm"] == pytest.approx(2 * better["p"])
    assert 0.1 < better["detectable"] < 0.6


def test_a_kind_that_nobody_has_gives_no_figure():
    (row,) = rows([fold(0, 1.0), fold(1, 1.0)], ["good"], ["distortion"])
    assert row["diseased"] == 0
    assert row["exam_auc"]["value"] is None
    assert "no pairs" in row["exam_auc"]["reason"]
    (compared,) = comparisons([fold(0, 1.0), fold(1, 1.0)], [("good", "good")], ["distortion"])
    assert (compared["difference"], compared["p"], compared["p_holm"]) == (None, None, None)


def test_the_detectable_difference_is_that_of_a_simulation():
    """Hanley and McNeil's errors are of exponential scores; those of mean a / (1 - a) exceed those of mean 1 with
    probability a."""
    generator, diseased, healthy, auc = np.random.default_rng(0), 60, 40, 0.7

    def aucs(correlation: float, repetitions: int = 4000) -> np.ndarray:
        normal = generator.multivariate_normal(
            [0, 0], [[1, correlation], [correlation, 1]], (repetitions, diseased + healthy)
        )
        values = stats.expon.ppf(stats.norm.cdf(normal))
        high, low = values[:, :diseased] * auc / (1 - auc), values[:, diseased:]
        return (high[:, :, None] > low[:, None]).mean((1, 2))

    pairs = aucs(0.6)
    correlation = float(np.corrcoef(pairs.T)[0, 1])
    spread = float((pairs[:, 0] - pairs[:, 1]).std())
    assert pairs.mean() == pytest.approx(auc, abs=0.01)
    assert detectable(diseased, healthy, auc, correlation) == pytest.approx(DETECTED * spread, rel=0.12)
