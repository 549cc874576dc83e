"""Scored images to rows and comparisons: agreement with the figures' own functions, and odd cohorts."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rayad.evaluation.metrics import ANY, Scored
from rayad.evaluation.table import Options, comparisons, rows

FEW = Options(resamples=60, comparison_resamples=199)


def cohort(strength=1.5, patients=14, healthy=7, side=10, seed=0):
    """A left and a right image of each patient; lesions, the same for every seed, in the left ones."""
    generator, images = np.random.default_rng(seed), []
    tissue = np.ones((side, side), dtype=bool)
    tissue[:, -2:] = False
    for i in range(patients):
        for part in ("left", "right"):
            scores = generator.normal(size=(side, side))
            truth = {}
            if i >= healthy and part == "left":
                mask = np.zeros((side, side), dtype=bool)
                mask[i % 6 : i % 6 + 3, 2:5] = True
                truth = {"mass": mask}
                scores = scores + strength * mask
            images.append(
                Scored(f"e{i}{part}", f"p{i}", bool(truth), np.where(tissue, scores, np.nan), tissue, truth, 3.2)
            )
    return images


def cells(row):
    return {name: cell for name, cell in row.items() if isinstance(cell, dict) and name != "froc"}


def test_a_row_holds_exact_figures_inside_their_intervals():
    images = cohort()
    (row,) = rows("cae", images, ["mass"], threshold=2.0, options=FEW)
    held = [i for i in images if i.truth]
    scores = np.concatenate([i.scores[i.tissue] for i in held])
    truth = np.concatenate([i.truth["mass"][i.tissue] for i in held])
    assert row["pixel_auc"]["value"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert row["pixel_ap"]["prevalence"] == truth.mean()
    each = [roc_auc_score(i.truth["mass"][i.tissue], i.scores[i.tissue]) for i in held]
    assert row["image_wise_auc"]["mean"] == pytest.approx(np.mean(each))
    assert row["image_wise_auc"]["std"] == pytest.approx(np.std(each, ddof=1))
    found = scores > 2
    assert row["dice"]["value"] == pytest.approx(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert row["hausdorff_mm"]["mean"] == pytest.approx(3.2 * row["hausdorff_px"]["mean"])
    for name, cell in cells(row).items():
        middle = cell.get("value", cell.get("mean"))
        assert cell["low"] - 0.05 <= middle <= cell["high"] + 0.05, name


def test_a_row_counts_what_stands_behind_it():
    images = cohort()
    lost = replace(images[-2], truth={"mass": np.zeros((10, 10), dtype=bool)})
    outside = np.zeros((10, 10), dtype=bool)
    outside[4, 9] = True
    (row,) = rows("cae", [*images[:-4], replace(images[-4], truth={"mass": outside}), lost], ["mass"], options=FEW)
    assert {name: row[name] for name in ("images", "patients", "images_without_place", "images_outside_tissue")} == {
        "images": 5,
        "patients": 5,
        "images_without_place": 1,
        "images_outside_tissue": 1,
    }
    assert row["healthy_patients"] == 7
    assert row["exam_auc"]["diseased"] == 7  # the lesion's place does not matter there


def test_figures_that_a_cohort_does_not_define_are_null_with_a_reason():
    healthy_only = cohort(patients=6, healthy=6)
    diseased_only = [i for i in cohort() if i.truth]
    for images, kind in ((healthy_only, "mass"), (cohort(), "distortion"), ([], "mass")):
        (row,) = rows("cae", images, [kind], options=FEW)
        for name, cell in cells(row).items():
            assert cell.get("value", cell.get("mean")) is None, name
            assert cell["reason"], name
        assert row["froc"]["sensitivity"] is None
    (row,) = rows("cae", diseased_only, ["mass"], options=FEW)
    assert row["exam_auc"]["reason"] == "AUROC needs both classes, got 7 anomalous and 0 normal"
    assert row["pixel_auc"]["value"] > 0.5


def test_few_patients_have_figures_without_intervals():
    (row,) = rows("cae", cohort(patients=5, healthy=3), ["mass"], options=FEW)
    assert row["pixel_auc"]["value"] > 0.5
    assert row["pixel_auc"]["low"] is None
    assert row["pixel_auc"]["reason"] == "an interval needs 5 patients of each class, got 2"


def test_constant_scores_are_chance_and_an_empty_mask():
    flat = [replace(i, scores=np.where(i.tissue, 1.0, np.nan)) for i in cohort()]
    (row,) = rows("flat", flat, ["mass"], threshold=2.0, options=FEW)
    assert row["pixel_auc"]["value"] == row["image_wise_auc"]["mean"] == row["exam_auc"]["value"] == 0.5
    assert row["empty_masks"] == 7
    assert row["hausdorff_px"]["mean"] == pytest.approx(np.hypot(10, 10))


def test_rows_are_json_and_the_same_for_the_same_seed():
    made = [rows("cae", cohort(), ["mass", "distortion", ANY], threshold=1.0, options=FEW) for _ in range(2)]
    assert json.dumps(made[0], allow_nan=False) == json.dumps(made[1], allow_nan=False)
    assert [row["lesion"] for row in made[0]] == ["mass", "distortion", "any"]


def test_comparisons_find_the_better_detector_on_every_figure():
    scored = {"good": cohort(3.0), "poor": cohort(0.2, seed=1)}
    found = comparisons(scored, ["mass"], options=FEW)
    assert [c["figure"] for c in found] == ["pixel_auc", "image_wise_auc", "exam_auc"]
    assert all(c["difference"] > 0 for c in found[:2])
    assert found[1]["p"] == 2.0**-6
    assert found[1]["note"] == "7 patients cannot give p below 0.016"
    assert all(c["p_holm"] >= c["p"] for c in found)
    json.dumps(found, allow_nan=False)


def test_comparisons_adjust_over_the_whole_list_and_skip_what_is_undefined():
    scored = {name: cohort(s, seed=i) for i, (name, s) in enumerate({"a": 2.0, "b": 1.0, "c": 0.0}.items())}
    found = comparisons(scored, ["mass", "distortion"], options=FEW)
    known = [c for c in found if c["p"] is not None]
    assert (len(found), len(known)) == (18, 9)
    assert min(c["p_holm"] for c in known) == pytest.approx(9 * min(c["p"] for c in known))
    assert all(c["note"] and c["p_holm"] is None for c in found if c["lesion"] == "distortion")
    only = comparisons(scored, ["mass"], pairs=[("c", "a")], options=FEW)
    assert {(c["a"], c["b"]) for c in only} == {("c", "a")}


def test_detectors_of_other_resolutions_are_compared_at_the_places_that_both_scored():
    """One of them has a row of places more, and tissue elsewhere; by scikit-learn on what both have."""
    one, other = cohort(2.0), []
    for image in cohort(1.0, seed=3):
        grow = ((0, 1), (0, 0))
        tissue = np.pad(image.tissue, grow, constant_values=True)
        tissue[2, :4] = False
        scores = np.where(tissue, np.pad(image.scores, grow, constant_values=9.0), np.nan)
        truth = {kind: np.pad(mask, grow) for kind, mask in image.truth.items()}
        other.append(replace(image, scores=scores, tissue=tissue, truth=truth))
    pixels, images, _ = comparisons({"one": one, "other": other}, ["mass"], options=FEW)
    pooled, by_image = {"one": [], "other": []}, {"one": [], "other": []}
    for a, b in zip(one, other, strict=True):
        if "mass" in a.truth:
            both = a.tissue & b.tissue[:-1]
            truth = a.truth["mass"][both]
            for name, scores in (("one", a.scores), ("other", b.scores[:-1])):
                pooled[name] += list(zip(truth, scores[both], strict=True))
                by_image[name].append(roc_auc_score(truth, scores[both]))
    areas = {name: roc_auc_score(*zip(*values, strict=True)) for name, values in pooled.items()}
    assert pixels["difference"] == pytest.approx(areas["one"] - areas["other"])
    assert images["difference"] == pytest.approx(np.mean(by_image["one"]) - np.mean(by_image["other"]))


def test_places_that_are_not_as_far_apart_are_not_compared():
    scored = {"one": cohort(2.0), "other": [replace(image, step_mm=3.3) for image in cohort(1.0)]}
    pixels, images, exams = comparisons(scored, ["mass"], options=FEW)
    assert pixels["note"] == images["note"] == f"places are {scored['one'][0].step_mm:.4g} and 3.3 mm apart"
    assert pixels["p"] is None
    assert exams["p"] is not None
