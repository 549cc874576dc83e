"""Tests of differences against brute force, enumeration and simulation under no difference."""

from itertools import product

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from rayad.evaluation import bootstrap
from rayad.evaluation.metrics import PooledPlaces, Undefined
from rayad.evaluation.significance import (
    concordance,
    delong,
    delong_variance,
    holm,
    paired_bootstrap,
    resampled_auc,
    wilcoxon,
)

rng = np.random.default_rng


def exams(seed, diseased=15, healthy=20, effect=1.0, levels=0.0):
    """Two correlated scores a patient."""
    generator = rng(seed)
    anomalous = np.arange(diseased + healthy) < diseased
    shared = generator.normal(size=anomalous.size)
    a, b = (shared + generator.normal(size=anomalous.size) + effect * anomalous for _ in range(2))
    return (np.round(a * levels) / levels, np.round(b * levels) / levels, anomalous) if levels else (a, b, anomalous)


def places(seed, patients=8, size=40, shift=(1.0, 1.0), healthy=0):
    """Two detectors on the same places, with an effect of the patient; the last patients are healthy."""
    generator = rng(seed)
    patient = np.repeat(np.arange(patients), size)
    diseased = np.arange(patients) < patients - healthy
    anomalous = (generator.random(patient.size) < 0.2) & diseased[patient]
    ids = tuple(f"p{i}" for i in range(patients))
    base = generator.normal(size=patients)[patient]
    share = np.zeros(patient.size)
    return [
        PooledPlaces(
            base + generator.normal(size=patient.size) + s * anomalous, anomalous, share, patient, ids, diseased
        )
        for s in shift
    ]


# --- DeLong


@pytest.mark.parametrize("levels", [0.0, 2.0])
def test_delong_variance_is_that_of_the_kernel_over_all_pairs(levels):
    a, b, anomalous = exams(0, levels=levels)

    def kernel(scores):
        x, y = scores[anomalous][:, None], scores[~anomalous][None]
        return (x > y) + 0.5 * (x == y)  # m n

    def covariance(f, g):
        m, n = f.shape
        s10 = ((f.mean(1) - f.mean()) * (g.mean(1) - g.mean())).sum() / (m - 1)
        s01 = ((f.mean(0) - f.mean()) * (g.mean(0) - g.mean())).sum() / (n - 1)
        return s10 / m + s01 / n

    f, g = kernel(a), kernel(b)
    difference, variance = delong_variance(a, b, anomalous)
    assert difference == pytest.approx(roc_auc_score(anomalous, a) - roc_auc_score(anomalous, b))
    assert variance == pytest.approx(covariance(f, f) + covariance(g, g) - 2 * covariance(f, g), rel=1e-12)


def test_delong_rejects_as_often_as_it_says_where_nothing_differs():
    p = np.array([delong(*exams(seed, 30, 30)).p for seed in range(600)])
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert p.mean() == pytest.approx(0.5, abs=0.05)


def test_delong_agrees_with_swapping_the_detectors_of_every_patient():
    a, b, anomalous = exams(5, 25, 30)
    observed = delong(a, b, anomalous)
    ranks = stats.rankdata(a), stats.rankdata(b)  # exchangeable marginals (Venkatraman and Begg 1996)
    swap = rng(0).random((2000, a.size)) < 0.5

    def auc(scores):  # n worlds at once
        above = stats.rankdata(scores, axis=1)[:, anomalous].sum(axis=1) - anomalous.sum() * (anomalous.sum() + 1) / 2
        return above / (anomalous.sum() * (~anomalous).sum())

    swapped = auc(np.where(swap, *ranks)) - auc(np.where(swap, *ranks[::-1]))
    permuted = (np.abs(swapped) >= abs(observed.difference)).mean()
    assert observed.p == pytest.approx(permuted, abs=0.06)


def test_delong_covers_the_true_difference():
    inside = []
    for seed in range(300):
        a, b, anomalous = exams(seed, 30, 40)
        found = delong(a, b, anomalous)
        assert found.low is not None
        assert found.high is not None
        inside.append(found.low <= 0 <= found.high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)


def test_delong_of_equal_or_perfect_detectors_does_not_divide_by_zero():
    a, _, anomalous = exams(1)
    assert (delong(a, a, anomalous).p, delong(a, a, anomalous).difference) == (1.0, 0.0)
    perfect, worst = anomalous.astype(float), -anomalous.astype(float)
    assert delong(perfect, worst, anomalous).p is None
    assert "no variance" in delong(perfect, worst, anomalous).note


def test_delong_says_when_patients_are_few():
    assert delong(*exams(0, 4, 20)).p is None
    assert "needs 5 patients of each class, got 4" in delong(*exams(0, 4, 20)).note
    assert delong(*exams(0, 1, 20)).p is None
    assert "7 patients in the smaller class: the normal approximation is rough" in delong(*exams(0, 7, 20)).note
    with pytest.raises(Undefined, match="got 0 anomalous and 20 normal"):
        delong(*exams(0, 0, 20))


# --- Wilcoxon


def single(values):
    return {f"p{i}": [float(v)] for i, v in enumerate(values)}


def test_wilcoxon_counts_the_signs_of_all_worlds():
    d = np.array([0.3, -0.1, 0.25, 0.4, 0.02, 0.5, -0.07])
    ranks = stats.rankdata(np.abs(d))
    observed = abs(ranks[d > 0].sum() - ranks[d < 0].sum())
    worlds = [abs(np.dot(signs, ranks)) for signs in product([-1, 1], repeat=d.size)]
    found = wilcoxon(single(d), single(np.zeros(d.size)))
    assert found.p == pytest.approx(np.mean(np.array(worlds) >= observed))
    assert found.difference == pytest.approx(d.mean())


def test_wilcoxon_takes_one_value_a_patient():
    a = {"x": [0.9, 0.7], "y": [0.6], "z": [0.5]}
    b = {"x": [0.5, 0.5], "y": [0.5], "z": [0.6]}
    found = wilcoxon(a, b)
    assert (found.patients, found.floor) == (3, 0.25)
    assert found.difference == pytest.approx((0.3 + 0.1 - 0.1) / 3)
    assert found.note == "3 patients cannot give p below 0.25"


def test_wilcoxon_of_equal_detectors_is_one_and_of_different_patients_is_refused():
    same = single(rng(0).random(12))
    assert wilcoxon(same, same).p == 1
    with pytest.raises(ValueError, match="same images"):
        wilcoxon(same, single(np.zeros(11)))
    with pytest.raises(Undefined, match="got none"):
        wilcoxon({}, {})


def test_wilcoxon_reaches_its_floor_and_not_below():
    d = np.arange(1, 18) / 100  # 17 patients, all in favour of a
    found = wilcoxon(single(d), single(np.zeros(17)))
    assert found.p == pytest.approx(2.0**-16)
    assert found.floor == 2.0**-16


# --- bootstrap


def test_concordance_counts_the_pairs_of_two_patients():
    a = places(0, patients=3, size=12)[0]
    table = concordance(a)
    for i, j in product(range(3), repeat=2):
        x = a.scores[a.anomalous & (a.patient == i)][:, None]
        y = a.scores[~a.anomalous & (a.patient == j)][None]
        assert table[i, j] == ((x > y) + 0.5 * (x == y)).sum()


def test_resampled_auc_is_the_auroc_of_the_drawn_places():
    a = places(1, healthy=3)[0]
    weights = bootstrap.draw(a.diseased, 5, 0)
    for auc, row in zip(resampled_auc(a, weights), weights, strict=True):
        copies = row[a.patient].astype(int)
        expected = roc_auc_score(np.repeat(a.anomalous, copies), np.repeat(a.scores, copies))
        assert auc == pytest.approx(expected, abs=1e-12)


def test_a_difference_that_every_patient_shows_is_found_and_none_is_not():
    better = paired_bootstrap(*places(2, patients=20, shift=(2.0, 0.2)), resamples=999)
    assert better.p == better.floor == 2 / 1000
    assert better.low is not None
    assert better.low > 0.1
    a, _ = places(3, patients=20)
    assert paired_bootstrap(a, a, resamples=99).p == 1


def test_the_bootstrap_rejects_about_as_often_as_it_says_where_nothing_differs():
    p = np.array([paired_bootstrap(*places(seed, patients=25), resamples=199).p for seed in range(200)], dtype=float)
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.05)


def test_few_patients_give_a_difference_without_a_p():
    found = paired_bootstrap(*places(4, patients=4), resamples=99)
    assert (found.p, found.low) == (None, None)
    assert found.note == "an interval needs 5 patients of each class, got 4"
    assert found.difference != 0


def test_different_places_are_refused():
    with pytest.raises(ValueError, match="same places"):
        paired_bootstrap(places(0)[0], places(1)[0])


# --- Holm


def test_holm_by_hand():
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_family_wise_error():
    generator = rng(0)
    wrong = [min(p for p in holm(generator.random(10).tolist()) if p is not None) <= 0.05 for _ in range(2000)]
    assert np.mean(wrong) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
