"""What a benchmark says beside its table: seeds, groups, verdicts, ranks, findings, drawings; streaming counts."""

import re

import numpy as np
import pytest
from scipy import ndimage, stats
from sklearn.metrics import average_precision_score, roc_auc_score

from rayad.evaluation import metrics, significance, table, verdicts
from rayad.evaluation.metrics import Scored, Undefined
from rayad.evaluation.ranks import ranks
from rayad.evaluation.seeds import spread
from rayad.evaluation.streaming import count, edges_of
from rayad.evaluation.svg import forest, ranking
from rayad.heatmaps.findings import findings
from rayad.scoring.calibrate import calibrate


def cohort(patients: int = 24, effect: float = 2.0) -> list[Scored]:
    """Half of the patients have a mass; every third breast is dense, where it is harder to see."""
    generator, tissue, images = np.random.default_rng(0), np.ones((12, 12), dtype=bool), []
    for i in range(patients):
        diseased, dense = i % 2 == 1, i % 3 == 0
        mask = np.zeros((12, 12), dtype=bool)
        mask[3:6, i % 8 : i % 8 + 3] = diseased
        scores = generator.normal(size=(12, 12)) + effect * mask / (3 if dense else 1)
        truth = {"mass": mask} if diseased else {}
        group = "dense" if dense else "not dense"
        images.append(Scored(f"e{i}", f"p{i}", diseased, scores, tissue, truth, 3.2, group))
    return images


def test_seeds_have_mean_and_spread():
    def run(value, undefined=None):
        return [
            {"detector": "cae", "lesion": "mass", "pixel_auc": {"value": value}, "image_wise_auc": {"mean": value}}
            | {"exam_auc": {"value": undefined}}
        ]

    (row,) = spread([run(0.8), run(0.9), run(0.7)])
    assert row["seeds"] == 3
    assert row["pixel_auc"] == {"mean": pytest.approx(0.8), "std": pytest.approx(0.1), "values": [0.8, 0.9, 0.7]}
    assert row["exam_auc"] == {"mean": None, "std": None, "values": []}


def test_groups_have_figures_of_their_own_and_a_test_between_them():
    images = cohort(60)
    rows, tests = table.group_rows("cae", images, ["mass"], options=table.Options(resamples=50))
    aucs = metrics.image_wise_auc(images, "mass")
    for row in rows:
        own = [aucs[i.exam_id] for i in images if i.group == row["group"] and i.exam_id in aucs]
        assert row["image_wise_auc"]["mean"] == pytest.approx(np.mean(own))
    groups = [[aucs[i.exam_id] for i in images if i.group == g and i.exam_id in aucs] for g in ("dense", "not dense")]
    assert tests[0]["p"] == pytest.approx(stats.mannwhitneyu(*groups).pvalue)
    assert tests[0]["high"] < 0


def test_a_group_without_lesions_is_told_and_not_tested():
    images = [i for i in cohort() if i.group == "dense" or not i.diseased]
    rows, tests = table.group_rows("cae", images, ["mass"], options=table.Options(resamples=20))
    assert next(r for r in rows if r["group"] == "not dense")["pixel_auc"]["value"] is None
    assert tests[0]["p"] is None
    assert "two groups need patients" in tests[0]["note"]


def test_few_patients_cannot_give_a_small_p_between_groups():
    found = significance.unpaired({"a": 0.9, "b": 0.8}, {"c": 0.1, "d": 0.2})
    assert found.floor == pytest.approx(2 / 6)
    assert found.low is None
    assert "cannot give p below 0.33" in found.note
    with pytest.raises(Undefined):
        significance.unpaired({}, {"c": 1.0})


def test_verdicts_count_what_each_rule_calls_anomalous():
    healthy = calibrate({f"k{i}": [np.random.default_rng(i).normal(size=(12, 12))] for i in range(30)})
    images = cohort(effect=6.0)
    rows = {row["rule"]: row for row in verdicts.rows("cae", images, healthy)}
    assert list(rows) == ["mean + 2 sd", "mean + 3 sd", "quantile 0.95", "p at most 0.05", "p at most 0.1"]
    mean, sd = healthy.image_scores.mean(), healthy.image_scores.std()
    single = np.array([metrics.image_score(i.scores) for i in images])
    diseased = np.array([i.diseased for i in images])
    called = single > mean + 2 * sd
    row = rows["mean + 2 sd"]
    assert row["sensitivity"]["value"] == pytest.approx(called[diseased].mean())
    assert row["specificity"]["value"] == pytest.approx((~called)[~diseased].mean())
    assert row["sensitivity"]["low"] < row["sensitivity"]["value"] <= row["sensitivity"]["high"]
    assert not row["saw_labels"]


def test_verdicts_without_a_class_are_null_with_the_reason():
    healthy = calibrate({"k": [np.zeros((2, 2)) + np.arange(4).reshape(2, 2)]})
    row = verdicts.rows("cae", [i for i in cohort() if not i.diseased], healthy)[0]
    assert row["sensitivity"] == {"value": None, "low": None, "high": None, "reason": "no anomalous image"}
    assert row["balanced_accuracy"] is None


def test_images_are_judged_one_by_one_as_scikit_learn_does():
    images = cohort()
    row = table.rows("cae", images, ["mass"], options=table.Options(resamples=20))[0]
    single, diseased = [metrics.image_score(i.scores) for i in images], [i.diseased for i in images]
    assert row["image_auc"]["value"] == pytest.approx(roc_auc_score(diseased, single))
    assert row["image_ap"]["value"] == pytest.approx(average_precision_score(diseased, single))


def figures(worse: float) -> dict[str, dict[str, float]]:
    random = np.random.default_rng(1)
    base = random.uniform(0.7, 0.9, 20)
    shifts = {"best": 0.05, "like-it": 0.05, "worse": -worse}
    return {n: {f"p{i}": v + s + random.normal(0, 0.01) for i, v in enumerate(base)} for n, s in shifts.items()}


def test_ranks_tell_the_worse_and_join_the_alike():
    found = ranks(figures(0.1))
    table_ = np.array([list(of.values()) for of in figures(0.1).values()])
    assert found["p"] == pytest.approx(stats.friedmanchisquare(*table_).pvalue)
    assert found["ranks"]["worse"] == 3
    assert sum(found["ranks"].values()) == pytest.approx(6)
    assert [sorted(pair) for pair in found["alike"]] == [["best", "like-it"]]


def test_ranks_of_too_few_and_of_equal_detectors():
    assert "need 3 detectors" in ranks({"a": {"p": 1.0}, "b": {"p": 0.5}})["reason"]
    same = ranks({name: {f"p{i}": 0.5 + i / 10 for i in range(4)} for name in "abc"})
    assert same["p"] == 1
    assert len(same["alike"]) == 3


def test_findings_are_the_joined_places_above_the_alarm_the_highest_first():
    quantile = np.zeros((6, 6))
    quantile[1, 1:3] = quantile[2, 3] = 0.995  # joined by a corner
    quantile[5, 5] = 0.999
    quantile[0, 5] = np.nan
    scores = np.where(quantile > 0, 10 * quantile, 0)
    listed, number = findings(scores, quantile, 0.99, step_mm=2.0)
    assert (number, [f.size_mm2 for f in listed]) == (2, [4.0, 12.0])
    assert (listed[0].row_mm, listed[0].col_mm, listed[0].healthy_quantile) == (11.0, 11.0, 0.999)
    assert findings(scores, quantile, 0.99, 2.0, most=1)[0] == listed[:1]
    assert findings(scores, quantile * 0, 0.99, 2.0) == ([], 0)


def test_streaming_counts_add_and_are_as_good_as_sorting():
    random = np.random.default_rng(0)
    healthy = random.gamma(2, size=50_000)
    scores = np.concatenate([random.gamma(2, size=990_000), random.gamma(2, size=10_000) + 1.5])
    anomalous = np.repeat([False, True], [990_000, 10_000])
    edges, order = edges_of(np.linspace(0, 1, len(healthy)), np.sort(healthy)), random.permutation(len(scores))
    assert len(edges) < 4096
    parts = [count(scores[part], anomalous[part], edges) for part in np.array_split(order, 7)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    at_once = count(scores, anomalous, edges)
    assert np.array_equal(whole.normal, at_once.normal)
    assert whole.auroc() == pytest.approx(roc_auc_score(anomalous, scores), abs=1e-6)
    assert whole.average_precision() == pytest.approx(average_precision_score(anomalous, scores), abs=1e-3)


def test_streaming_refuses_what_it_cannot_count():
    edges = edges_of(np.linspace(0, 1, 10), np.arange(10.0))
    with pytest.raises(ValueError, match="1 of 2 scores are no numbers"):
        count(np.array([1.0, np.nan]), np.array([True, False]), edges)
    with pytest.raises(ValueError, match="different edges"):
        _ = count(np.ones(1), np.ones(1, bool), edges) + count(np.ones(1), np.ones(1, bool), edges[:-1])
    with pytest.raises(Undefined, match="got 1 anomalous and 0 normal"):
        count(np.ones(1), np.ones(1, bool), edges).auroc()
    with pytest.raises(ValueError, match="finite healthy scores"):
        edges_of(np.zeros(1), np.array([np.inf]))


def test_a_forest_plot_has_every_detector_the_best_first_and_escapes_names():
    rows = [
        {"detector": name, "pixel_auc": {"value": value, "low": value - 0.1, "high": value + 0.05}}
        for name, value in (("a<b", 0.7), ("best", 0.9))
    ]
    text = forest(rows, "pixel_auc", {"best": [0.88, 0.91]})
    names = re.findall(r'text-anchor="end">(.*?)<', text)
    assert names == ["best", "a&lt;b"]
    centres = [float(x) for x in re.findall(r'circle cx="([\d.]+)"', text)]
    assert centres[0] > centres[1]
    assert forest([{"detector": "x", "pixel_auc": {"value": None}}], "pixel_auc") == ""


def test_a_diagram_of_ranks_joins_what_does_not_differ():
    found = {"ranks": {"a": 1.0, "b": 2.0, "c": 3.0}, "alike": [["a", "b"]]}
    assert ranking(found).count('stroke-width="3"') == 1
    assert ranking({"ranks": {}, "alike": []}) == ""


def test_findings_of_very_many_regions_are_those_of_each_by_itself():
    random = np.random.default_rng(0)
    scores = np.round(random.random((60, 60)), 1)  # many are equal
    quantile = np.where(random.random((60, 60)) > 0.85, 0.999, 0.5)
    labels, number = ndimage.label(quantile > 0.99, structure=np.ones((3, 3)))
    wanted = []
    for label in range(1, number + 1):
        inside = labels == label
        row, column = np.unravel_index(np.where(inside, scores, -np.inf).argmax(), scores.shape)
        wanted.append((scores[row, column], (row + 0.5) * 2, (column + 0.5) * 2, inside.sum() * 4))
    wanted.sort(key=lambda of: -of[0])
    listed, found = findings(scores, quantile, 0.99, step_mm=2.0, most=50)
    assert found == number > 100
    assert [(f.score, f.row_mm, f.col_mm, f.size_mm2) for f in listed] == wanted[:50]
