"""Figures of places, images and exams, against scikit-learn, scipy and enumeration."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, directed_hausdorff
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from rayad.evaluation import bootstrap, froc, metrics, surface
from rayad.evaluation.metrics import ANY, Scored, Undefined, auroc, pool, truth_on_grid

rng = np.random.default_rng


def image(name, scores, truth=None, *, patient="", tissue=None, diseased=None, kind="mass"):
    scores = np.atleast_2d(np.array(scores, dtype=np.float32))
    tissue = np.ones(scores.shape, dtype=bool) if tissue is None else tissue
    truths = {} if truth is None else {kind: np.atleast_2d(np.array(truth, dtype=bool))}
    diseased = bool(truths) if diseased is None else diseased
    return Scored(name, patient or name, diseased, np.where(tissue, scores, np.nan), tissue, truths, 3.2)


def cohort(patients=12, healthy=6, side=12, levels=0, seed=0):
    """Random images, one lesion in each of the diseased; scores on few levels where ties are wanted."""
    generator, images = rng(seed), []
    for i in range(patients):
        scores = generator.normal(size=(side, side))
        truth = None
        if i >= healthy:
            truth = np.zeros((side, side), dtype=bool)
            row, col = generator.integers(0, side - 3, 2)
            truth[row : row + 3, col : col + 2] = True
            scores += 1.2 * truth
        images.append(image(f"e{i:02}", np.round(scores * levels) / levels if levels else scores, truth))
    return images


def everything(images, kind="mass"):
    held = [i for i in images if kind in i.truth]
    return np.concatenate([i.scores.ravel() for i in held]), np.concatenate([i.truth[kind].ravel() for i in held])


def counts(collected):
    return metrics.cumulate(collected.scores, collected.anomalous.astype(float), (~collected.anomalous).astype(float))


# --- truth on the grid


def test_a_place_is_anomalous_if_its_center_lies_in_the_lesion():
    mask = np.zeros((32, 32), dtype=bool)
    mask[10:21, 4:13] = True
    centers = np.array([4, 12, 20, 28])
    truth, moved = truth_on_grid(mask, centers, centers)
    assert np.argwhere(truth).tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]
    assert not moved


def test_a_lesion_between_centers_takes_the_nearest_place():
    mask = np.zeros((32, 32), dtype=bool)
    mask[14:16, 17] = True
    centers = np.array([4, 12, 20, 28])
    truth, moved = truth_on_grid(mask, centers, centers)
    assert np.argwhere(truth).tolist() == [[1, 2]]
    assert moved


def test_no_lesion_has_no_place():
    truth, moved = truth_on_grid(np.zeros((16, 16), dtype=bool), np.array([4, 12]), np.array([4]))
    assert truth.shape == (2, 1)
    assert not truth.any()
    assert not moved


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tissue": np.zeros((2, 2), dtype=bool)}, "e: no place lies in the tissue"),
        ({"scores": np.full((2, 2), np.nan)}, "e: a place in the tissue has no score"),
        ({"diseased": False, "truth": {"mass": np.ones((2, 2), dtype=bool)}}, "e: a healthy image cannot hold"),
    ],
)
def test_an_image_that_contradicts_itself_is_refused(fields, message):
    good = {"scores": np.zeros((2, 2)), "tissue": np.ones((2, 2), dtype=bool), "truth": {}, "diseased": True}
    with pytest.raises(ValueError, match=message):
        Scored(exam_id="e", patient_id="p", step_mm=3.2, **(good | fields))


# --- figures of places


def test_auroc_counts_the_pairs_in_the_right_order():
    score = np.array([0.1, 0.4, 0.4, 0.9])
    anomalous = np.array([False, True, False, True])
    assert auroc(score, anomalous) == 3.5 / 4  # 0.4>0.1, 0.4=0.4, 0.9>0.1, 0.9>0.4


@pytest.mark.parametrize(("anomalous", "said"), [([True, True], "2 anomalous and 0 normal"), ([], "0 anomalous and 0")])
def test_auroc_needs_both_classes(anomalous, said):
    with pytest.raises(ValueError, match=said):
        auroc(np.zeros(len(anomalous)), np.array(anomalous, dtype=bool))


@pytest.mark.parametrize("levels", [0, 1, 5])
def test_pooled_figures_agree_with_scikit_learn(levels):
    images = cohort(levels=levels)
    scores, anomalous = everything(images)
    tp, fp = counts(pool(images, "mass"))
    assert metrics.area(tp, fp) == pytest.approx(roc_auc_score(anomalous, scores), abs=1e-12)
    assert metrics.average_precision(tp, fp) == pytest.approx(average_precision_score(anomalous, scores), abs=1e-12)


def test_best_dice_is_the_best_over_all_thresholds():
    scores, anomalous = everything(images := cohort(patients=8, levels=10))
    at = [scores >= t for t in np.unique(scores)]
    brute = max(2 * (found & anomalous).sum() / (found.sum() + anomalous.sum()) for found in at)
    assert metrics.best_dice(*counts(pool(images, "mass"))) == pytest.approx(brute, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60), st.sampled_from([0.05, 0.3, 1.0])
)
def test_region_overlap_of_one_lesion_is_the_partial_area(rows, limit):
    scores, anomalous = np.array([s for s, _ in rows], dtype=float), np.array([a for _, a in rows])
    if anomalous.all() or not anomalous.any():
        return
    fpr, tpr, _ = roc_curve(anomalous, scores, drop_intermediate=False)
    keep = fpr <= limit
    x, y = np.append(fpr[keep], limit), np.append(tpr[keep], np.interp(limit, fpr, tpr))
    tp, fp = metrics.cumulate(scores, anomalous / anomalous.sum(), (~anomalous).astype(float))
    assert metrics.region_overlap(tp, fp, limit) == pytest.approx(np.trapezoid(y, x) / limit, abs=1e-12)


def test_region_overlap_weighs_lesions_and_not_places():
    # the large lesion is found before any false alarm, the small one after all of them
    scores = [[9, 9, 9, 9, 1, 2, 3, 0]]
    truth = [[1, 1, 1, 1, 0, 0, 0, 1]]
    collected = pool([image("a", scores, truth)], "mass")
    tp, fp = metrics.cumulate(collected.scores, collected.share, (~collected.anomalous).astype(float))
    assert metrics.region_overlap(tp, fp) == pytest.approx(0.5)
    assert tp[0, -1] == 2


def test_lesions_of_other_kinds_are_neither_anomalous_nor_normal():
    both = image("a", [[1, 2, 3, 4]], [[1, 0, 0, 0]])
    both.truth["calcification"] = np.array([[False, True, False, False]])
    assert sorted(pool([both], "mass").scores) == [1, 3, 4]
    assert sorted(pool([both], "calcification").scores) == [2, 3, 4]
    assert pool([both], ANY).anomalous.sum() == 2


def test_images_whose_lesions_have_no_place_do_not_count_places():
    unplaced = image("a", [[1, 2]], [[0, 0]])
    half = image("b", [[1, 2]], [[1, 0]])
    half.truth["calcification"] = np.array([[False, False]])
    for images in ([unplaced], [half], []):
        with pytest.raises(Undefined, match="no image holds a lesion of kind 'mass'"):
            pool(images, "mass")
    assert metrics.patient_scores([unplaced], "mass") == {"a": (2.0, True)}


def test_a_lesion_outside_the_tissue_is_not_pooled():
    tissue = np.array([[True, True, False]])
    assert not metrics.usable(image("a", [[1, 2, 3]], [[0, 0, 1]], tissue=tissue), "mass")


def test_places_of_healthy_images_join_the_normal_ones_on_request():
    images = cohort(levels=7)
    collected = pool(images, "mass", with_healthy=True)
    scores = np.concatenate([i.scores.ravel() for i in images])
    truth = np.concatenate([i.truth.get("mass", np.zeros(i.scores.shape, dtype=bool)).ravel() for i in images])
    assert metrics.area(*counts(collected)) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert collected.diseased.sum() == 6


# --- figures of images and exams


def test_image_wise_auroc_is_one_auroc_an_image():
    images = cohort()
    expected = {i.exam_id: roc_auc_score(i.truth["mass"].ravel(), i.scores.ravel()) for i in images if i.truth}
    assert metrics.image_wise_auc(images, "mass") == pytest.approx(expected)


def test_a_patient_scores_its_highest_image_and_unknown_patients_stay_out():
    images = [
        image("a-left", [[1, 5]], patient="a"),
        image("a-right", [[1, 2]], [[1, 0]], patient="a"),
        image("b", [[3, 3]]),
        image("c", [[9, 9]], [[0, 1]], kind="calcification"),
        image("d", [[9, 9]], diseased=True),
        Scored("e", "e", None, np.array([[9.0]]), np.array([[True]]), {}, 3.2),
    ]
    assert metrics.patient_scores(images, "mass", top=0.0) == {"a": (5, True), "b": (3, False)}
    assert {p for p, (_, held) in metrics.patient_scores(images, ANY).items() if held} == {"a", "c", "d"}


def test_dice_counts_add_over_images():
    a, b = image("a", [[1, 5, 5]], [[0, 0, 1]]), image("b", [[1, 1, 5]], [[1, 1, 1]])
    assert metrics.dice_counts(a, "mass", 2.0) == (2, 3)
    assert metrics.dice_counts(b, "mass", 2.0) == (2, 4)


# --- distances


@pytest.mark.parametrize("seed", range(5))
def test_hausdorff_is_the_larger_directed_distance(seed):
    a, b = rng(seed).random((2, 15, 20)) > 0.9
    places_a, places_b = np.argwhere(a), np.argwhere(b)
    found = surface.distances(a, b)
    assert found.hausdorff == pytest.approx(
        max(directed_hausdorff(places_a, places_b)[0], directed_hausdorff(places_b, places_a)[0])
    )
    between = cdist(places_a, places_b)
    directed = [np.percentile(between.min(axis=axis), 95) for axis in (0, 1)]
    assert found.hd95 == pytest.approx(max(directed))


def test_the_mean_surface_distance_averages_over_both_borders():
    a, b = np.zeros((2, 12, 12), dtype=bool)
    a[2:7, 2:7] = True
    b[4:11, 3:10] = True
    borders = []
    for mask in (a, b):
        padded = np.pad(mask, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        borders.append(np.argwhere(mask & ~inner))
    between = cdist(*borders)
    expected = np.concatenate([between.min(axis=0), between.min(axis=1)]).mean()
    assert surface.distances(a, b).surface == pytest.approx(expected)


def test_a_hole_of_one_place_costs_one_pixel():
    a = np.zeros((41, 41), dtype=bool)
    a[5:36, 5:36] = True
    b = a.copy()
    b[20, 20] = False
    assert surface.distances(a, b).hausdorff == 1


def test_empty_masks_follow_the_rules_and_are_counted():
    empty, full = np.zeros((3, 4), dtype=bool), np.ones((3, 4), dtype=bool)
    assert surface.distances(empty, empty) == surface.Distances(0.0, 0.0, 0.0, 2)
    assert surface.distances(empty, full) == surface.distances(full, empty) == surface.Distances(5.0, 5.0, 5.0, 1)


def test_the_predicted_mask_is_one_percent_of_the_tissue():
    scores, tissue = rng(0).normal(size=(50, 50)), np.zeros((50, 50), dtype=bool)
    tissue[:20] = True
    mask = surface.highest(np.where(tissue, scores, np.nan), tissue)
    assert mask.sum() == 10
    assert scores[mask].min() > np.sort(scores[tissue])[-11]
    assert not surface.highest(np.ones((5, 5)), np.ones((5, 5), dtype=bool)).any()


# --- FROC


def test_peaks_are_local_maxima_and_a_plateau_is_one():
    scores = [[0, 0, 0, 0, 0], [0, 3, 3, 0, 1], [0, 0, 0, 0, 0], [2, 0, 0, 0, 0]]
    assert np.argwhere(froc.peaks(image("a", scores))).tolist() == [[1, 1], [1, 4], [3, 0]]
    assert froc.peaks(image("a", np.ones((4, 4)))).sum() == 1


def test_peaks_outside_the_tissue_do_not_exist():
    tissue = np.array([[True, True, False]])
    assert np.argwhere(froc.peaks(image("a", [[1, 2, 9]], tissue=tissue))).tolist() == [[0, 1]]


def brute_sensitivity(images, kind, rate):
    """The highest sensitivity over all thresholds that keep the rate."""
    peaks = [(i, froc.peaks(i)) for i in images]
    best = 0.0
    for t in sorted({float(s) for i, top in peaks for s in i.scores[top]}):
        alarms = sum(int((top & (i.scores >= t) & ~i.lesion(ANY)).sum()) for i, top in peaks)
        hits = [bool((top & (i.scores >= t) & i.truth[kind]).any()) for i, top in peaks if kind in i.truth]
        if alarms <= rate * len(images):
            best = max(best, sum(hits) / len(hits))
    return best


@pytest.mark.parametrize(("levels", "seed"), list(product([0, 3], range(3))))
def test_froc_agrees_with_a_search_over_thresholds(levels, seed):
    images = cohort(levels=levels, seed=seed)
    marks = froc.marks(images, "mass")
    found = bootstrap.sensitivities(marks, np.ones((1, len(marks.patients))))[0]
    assert found == pytest.approx([brute_sensitivity(images, "mass", rate) for rate in froc.RATES])


def test_froc_counts_a_lesion_without_a_peak_as_missed():
    # the slope's peak lies beside the lesion
    marks = froc.marks([image("a", [[1, 2, 3, 4]], [[1, 1, 0, 0]])], "mass")
    assert bootstrap.sensitivities(marks, np.ones((1, 1)))[0].tolist() == [0] * 6
    assert marks.lesion.sum() == 1


# --- intervals


def test_histograms_give_auroc_to_a_millionth():
    generator = rng(0)
    anomalous = generator.random(200_000) < 0.1
    scores = generator.normal(size=anomalous.size) + anomalous
    at = bootstrap.edges(scores, anomalous)
    patient = generator.integers(0, 7, anomalous.size)
    tables = [bootstrap.histograms(scores, of.astype(float), patient, 7, at) for of in (anomalous, ~anomalous)]
    tp, fp = (np.cumsum(table.sum(axis=0))[None] for table in tables)
    assert tables[0].shape[1] <= bootstrap.BINS
    assert metrics.area(tp, fp) == pytest.approx(roc_auc_score(anomalous, scores), abs=1e-6)


def test_a_draw_is_the_figure_of_the_drawn_patients():
    images = cohort(levels=4)
    collected = pool(images, "mass", with_healthy=True)
    weights = bootstrap.draw(collected.diseased, 3, seed=1)
    drawn = bootstrap.pooled(collected, {"auc": metrics.area, "ap": metrics.average_precision}, weights)
    for r, row in enumerate(weights):
        copies = row[collected.patient].astype(int)
        scores, truth = np.repeat(collected.scores, copies), np.repeat(collected.anomalous, copies)
        assert drawn["auc"][r] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
        assert drawn["ap"][r] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_draws_keep_the_number_of_patients_of_each_class():
    strata = np.array([True] * 5 + [False] * 8)
    weights = bootstrap.draw(strata, 50, seed=3)
    assert (weights[:, strata].sum(axis=1) == 5).all()
    assert (weights[:, ~strata].sum(axis=1) == 8).all()
    assert (weights == bootstrap.draw(strata, 50, seed=3)).all()
    assert weights.std(axis=0).min() > 0.5


def test_the_mean_of_a_draw_weighs_patients_with_all_their_images():
    values, patient = np.array([1.0, 3.0, 10.0]), np.array([0, 0, 1])
    assert bootstrap.means(values, patient, np.array([[1.0, 1.0], [2.0, 0.0]])).tolist() == [14 / 3, 2]


def test_intervals_cover_the_truth_about_95_times_in_100():
    """Patients with an effect of their own; the interval of the mean over images, by patient."""
    covered = []
    for seed in range(200):
        generator = rng(seed)
        values = (generator.normal(size=(40, 1)) + 0.3 * generator.normal(size=(40, 3))).ravel()
        strata = np.ones(40, dtype=bool)
        drawn = bootstrap.means(values, np.repeat(np.arange(40), 3), bootstrap.draw(strata, 400, seed))
        limits, _ = bootstrap.interval(drawn, strata)
        assert limits is not None
        covered.append(limits[0] <= 0 <= limits[1])
    assert 0.88 <= np.mean(covered) <= 0.99


def test_few_patients_or_equal_draws_give_no_interval():
    few, reason = bootstrap.interval(np.linspace(0, 1, 50), np.array([True] * 4 + [False] * 9))
    assert few is None
    assert reason == "an interval needs 5 patients of each class, got 4"
    same, reason = bootstrap.interval(np.ones(50), np.ones(9, dtype=bool))
    assert same is None
    assert "same value" in reason
