"""Healthy scores to p-values, against brute force and against simulated patients."""

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rayad.errors import DatasetError, FormatError
from rayad.heatmaps.findings import findings
from rayad.heatmaps.studies import study_p
from rayad.scoring.calibrate import SURVIVAL_POINTS, Calibration, calibrate, image_score, survival_points
from rayad.scoring.regions import ALARM

rng = np.random.default_rng


def healthy(patients, images, places, seed=0):
    """Clustered scores: a patient effect as large as the noise, an image effect half of it."""
    generator = rng(seed)
    effect = generator.normal(size=(patients, 1, 1)) + 0.5 * generator.normal(size=(patients, images, 1))
    return effect + generator.normal(size=(patients, images, places))


def of(scores, top=0.01):
    return calibrate({f"p{i}": [image[None] for image in patient] for i, patient in enumerate(scores)}, top)


def hierarchical(scores, s):
    """The published formula, place by place."""
    return (1 + sum(np.mean(np.ravel(patient) >= s) for patient in scores)) / (len(scores) + 1)


def test_an_image_scores_the_mean_of_its_top_places():
    grid = np.array([[np.nan, 5.0, 1.0], [2.0, 4.0, np.nan]])
    assert image_score(grid, top=0.5) == 4.5
    assert image_score(grid, top=0.0) == 5
    assert image_score(grid, top=0.01) == 5
    with pytest.raises(ValueError, match="at least one place"):
        image_score(np.full((2, 2), np.nan))


def test_exam_and_image_p_count_patients_by_hand():
    # two patients, image scores (maxima) 1, 3 and 2
    calibration = calibrate(
        {"a": [np.array([[0.0, 1.0]]), np.array([[3.0, 0.0]])], "b": [np.array([[2.0, 2.0]])]}, top=0.0
    )
    assert [calibration.exam_p(s) for s in (3.5, 3.0, 2.5, 2.0, 0.0)] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1, 1])
    assert [calibration.image_p(s) for s in (3.5, 3.0, 2.0, 1.0)] == pytest.approx([1 / 3, 1.5 / 3, 2.5 / 3, 1])
    assert (calibration.patients, calibration.floor) == (2, pytest.approx(1 / 3))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=3000), st.integers(-6, 6).map(float))
def test_a_compressed_survival_function_is_never_too_small(scores, s):
    points = survival_points(np.array(scores))
    exact, compressed = np.mean(np.array(scores) >= s), np.mean(points >= s)
    assert exact <= compressed + 1e-12
    assert compressed < exact + 1 / SURVIVAL_POINTS + 1e-12


@pytest.mark.parametrize("places", [7, 1024, 5000])
def test_place_p_is_the_hierarchical_formula_up_to_the_compression(places):
    scores = healthy(6, 2, places)
    grid = np.linspace(-5, 5, 201)[None]
    exact = np.array([hierarchical(scores, s) for s in grid[0]])
    p = of(scores).place_p(grid)[0]
    assert (p >= exact - 1e-12).all()
    assert (p - exact).max() < 1 / SURVIVAL_POINTS


def test_place_p_is_exact_where_the_places_divide_the_points():
    scores = healthy(5, 2, SURVIVAL_POINTS // 4)
    grid = scores.ravel()[::37][None]
    assert of(scores).place_p(grid)[0] == pytest.approx([hierarchical(scores, s) for s in grid[0]], abs=1e-12)


def test_p_values_are_valid_for_new_clustered_patients():
    """P(p <= a) <= a, over calibrations and new patients; one place, one image, one exam of each new patient."""
    draws, K = 400, 9
    found = {"place": [], "image": [], "exam": []}
    for seed in range(draws):
        scores = healthy(K + 20, 2, 30, seed)
        calibration = of(scores[:K], top=0.0)
        new = scores[K:]
        found["place"].append(calibration.place_p(new[:, 0, :1]).ravel())
        found["image"].append([calibration.image_p(s) for s in new[:, 1].max(axis=1)])
        found["exam"].append([calibration.exam_p(s) for s in new.max(axis=(1, 2))])
    for kind, values in found.items():
        p = np.array(values)
        for a in (0.1, 0.2, 0.5):
            rate = (p <= a + 1e-12).mean(axis=1)  # of each calibration
            error = rate.std() / np.sqrt(draws)
            assert rate.mean() <= a + 3 * error, (kind, a)
    assert (np.array(found["exam"]) <= 0.1 + 1e-12).mean() == pytest.approx(0.1, abs=0.025)  # exact, not just valid


@pytest.mark.parametrize("images", [1, 2, 3, 5])
def test_the_p_value_of_a_study_is_valid_for_any_number_of_images(images):
    """Calibration patients have two or three images each."""
    draws, K, p = 400, 9, []
    for seed in range(draws):
        scores = healthy(K + 20, 5, 30, seed)
        calibration = of([patient[: 2 + i % 2] for i, patient in enumerate(scores[:K])], top=0.0)
        assert calibration.images_each == 2
        highest = scores[K:, :images].max(axis=(1, 2))
        p.append([study_p(calibration.exam_p(s), images, calibration.images_each) for s in highest])
    for a in (0.1, 0.2, 0.5):
        rate = (np.array(p) <= a + 1e-12).mean(axis=1)
        assert rate.mean() <= a + 3 * rate.std() / np.sqrt(draws), a


def test_pooled_ranks_would_not_be_valid_where_the_hierarchical_p_is():
    """The reason for the hierarchy: few patients with many places each promise a precision that is not there."""
    pooled, valid = [], []
    for seed in range(300):
        scores = healthy(25, 1, 60, seed)
        places = scores[:5].ravel()
        new = scores[5:, 0, :1]
        pooled.append((1 + (places >= new).sum(axis=1)) / (places.size + 1))
        valid.append(of(scores[:5]).place_p(new).ravel())
    assert (np.array(pooled) <= 0.02).mean() > 0.03
    assert (np.array(valid) <= 0.02).mean() == 0


def test_the_smallest_p_is_one_over_patients_plus_one():
    calibration = of(healthy(19, 1, 50))
    assert calibration.exam_p(1e9) == calibration.image_p(1e9) == calibration.place_p(np.array([[1e9]]))[0, 0] == 0.05
    assert calibration.place_p(np.array([[-1e9]]))[0, 0] == 1


def test_healthy_quantiles_agree_with_the_empirical_distribution():
    scores = healthy(8, 2, 3000)
    calibration = of(scores)
    grid = np.quantile(scores, [0.0, 0.1, 0.5, 0.9, 0.99, 0.999])[None]
    share = [(scores < s).mean() for s in grid[0]]
    assert calibration.healthy_quantile(grid)[0] == pytest.approx(share, abs=1e-3)
    assert calibration.healthy_quantile(np.array([[-1e9, 1e9]]))[0].tolist() == [0, 1]
    assert (scores > calibration.threshold(0.99)).mean() == pytest.approx(0.01, abs=1e-3)
    assert (scores > calibration.threshold(0.9999)).mean() == pytest.approx(1e-4, abs=3e-5)


def test_every_patient_weighs_the_same_in_the_healthy_quantiles():
    few, many = np.zeros((1, 10)), np.ones((1, 10_000))
    calibration = calibrate({"few": [few], "many": [many]})
    assert calibration.healthy_quantile(np.array([[0.0, 0.5, 1.0, 1.5]]))[0] == pytest.approx(
        [0, 0.5, 0.5, 1], abs=1e-3
    )
    assert calibration.threshold(0.4) == 0
    assert calibration.threshold(0.6) == 1


def test_places_without_a_score_stay_without_one():
    calibration = of(healthy(3, 1, 20))
    grid = np.array([[np.nan, 0.0]], dtype=np.float32)
    for result in (calibration.place_p(grid), calibration.healthy_quantile(grid)):
        assert np.isnan(result).tolist() == [[True, False]]


def test_a_calibration_survives_safetensors():
    calibration = of(healthy(4, 2, 100), top=0.05)
    stored = safetensors.numpy.load(safetensors.numpy.save(calibration.to_tensors()))
    again = type(calibration).from_tensors(stored)
    grid = np.linspace(-4, 4, 50)[None]
    assert again.top == 0.05
    assert (again.place_p(grid) == calibration.place_p(grid)).all()
    assert again.image_p(1.0) == calibration.image_p(1.0)
    assert again.threshold(0.99) == calibration.threshold(0.99)


def test_a_damaged_calibration_is_refused():
    tensors = of(healthy(4, 2, 100)).to_tensors()
    with pytest.raises(FormatError, match="survival are missing"):
        type(of(healthy(2, 1, 9))).from_tensors({k: v for k, v in tensors.items() if k != "survival"})
    with pytest.raises(FormatError, match="do not fit"):
        type(of(healthy(2, 1, 9))).from_tensors(tensors | {"survival": tensors["survival"][:-1]})


@pytest.mark.parametrize(
    ("patients", "message"),
    [
        ({}, "at least one healthy patient, got none"),
        ({"a": []}, "patient a has no image"),
        ({"a": [np.full((2, 2), np.nan)]}, "patient a has no place"),
        ({"a": [np.array([[1.0, np.inf]])]}, "patient a has an infinite score"),
    ],
)
def test_what_cannot_calibrate_is_named(patients, message):
    with pytest.raises(DatasetError, match=message):
        calibrate(patients)


def test_a_quantile_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="must be in"):
        of(healthy(2, 1, 9)).threshold(99.0)


def test_an_image_that_is_unlike_all_healthy_ones_is_told_and_a_lesion_is_not():
    calibration = of(healthy(30, 2, 400))
    rng = np.random.default_rng(5)
    usual = rng.normal(size=(20, 20))
    with_lesion = usual.copy()
    with_lesion[5:8, 5:8] += 20
    assert calibration.far(usual) == calibration.far(with_lesion) == ""
    assert calibration.far(usual + 5).endswith("it is unlike what was learned from")
    assert calibration.far(np.where(np.arange(400).reshape(20, 20) < 99, np.nan, usual + 5))
    assert calibration.far(usual - 20).endswith("it is unlike what was learned from")  # as of an empty image
    before = {name: array for name, array in calibration.to_tensors().items() if name != "image_means"}
    old = type(calibration).from_tensors(before)
    assert old.far(usual + 5) == ""
    assert old.to_tensors().keys() == before.keys()


def test_patients_that_served_something_else_give_no_p_value():
    random = np.random.default_rng(0)
    patients = {f"p{k}": [random.normal(size=(5, 4))] for k in range(30)}
    usual, served = calibrate(patients), calibrate(patients, served=True)
    restored = Calibration.from_tensors(served.to_tensors())
    assert restored.served
    for reference in (served, restored):
        assert (reference.patients, reference.floor) == (0, 1.0)
        assert reference.exam_p(100.0) == reference.image_p(100.0) == reference.exam_p(-100.0) == 1.0
        assert (reference.place_p(np.linspace(-9, 9, 20).reshape(5, 4)) == 1).all()
        assert reference.threshold(0.99) == usual.threshold(0.99)
        assert "every p-value is 1" in reference.few
    assert not Calibration.from_tensors(usual.to_tensors()).served


def fields_of(patients, images, seed, lesions=0):
    """Smooth noise on 24x24 places with an effect of the patient, and lesions in it; where these are."""
    generator = rng(seed)
    for _ in range(patients):
        effect, grids, truths = 0.3 * generator.normal(), [], []
        for _ in range(images):
            smooth = ndimage.gaussian_filter(generator.normal(size=(24, 24)), 1)
            truth = np.zeros((24, 24), bool)
            for _ in range(lesions):
                row, column = generator.integers(2, 21, 2)
                truth[row : row + 2, column : column + 2] = True
            grids.append(smooth / smooth.std() + effect + generator.uniform(2, 6) * truth)
            truths.append(truth)
        yield grids, truths


def test_a_finding_is_judged_among_the_findings_of_healthy_patients():
    """By the formula, over regions that are grown place by place."""
    patients = {f"p{i}": grids for i, (grids, _) in enumerate(fields_of(12, 2, seed=3))}
    calibration = calibrate(patients)
    alarm = calibration.threshold(ALARM)
    by_patient = [np.concatenate([grown(grid, alarm) for grid in grids]) for grids in patients.values()]
    by_patient = [values for values in by_patient if values.size]
    asked = np.array([alarm, 3.0, 3.5, 4.0, 99.0])
    expected = [hierarchical(by_patient, s) for s in asked]
    np.testing.assert_allclose(calibration.finding_p(asked), expected)
    assert calibration.finding_p(asked)[-1] == pytest.approx(1 / (len(by_patient) + 1))


def grown(grid, alarm):
    """Highest scores of regions above the alarm whose places touch, corners too."""
    left, tops = {tuple(place) for place in np.argwhere(grid > alarm)}, []
    while left:
        region, edge = [], [left.pop()]
        while edge:
            row, column = edge.pop()
            region.append(grid[row, column])
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        tops.append(max(region))
    return np.array(tops)


def test_the_false_discovery_rate_holds_for_new_patients():
    """Of the findings that are kept at a rate, the mean share outside of lesions; with lesions and without."""
    calibration = calibrate({f"p{i}": grids for i, (grids, _) in enumerate(fields_of(150, 2, seed=0))})
    for rate in (0.1, 0.3):
        shares, kept_lesions = [], 0
        for number in (0, 2):
            for grids, truths in fields_of(300, 1, seed=1 + number, lesions=number):
                quantile = calibration.healthy_quantile(grids[0])
                listed, _ = findings(grids[0], quantile, ALARM, 1.0, most=99, calibration=calibration)
                kept = [one for one in listed if one.false_discovery_rate <= rate]
                false = [not truths[0][int(one.row_mm), int(one.col_mm)] for one in kept]
                shares.append(np.mean(false) if kept else 0.0)
                kept_lesions += len(kept) - sum(false)
        assert np.mean(shares) < rate + 2 * np.std(shares) / np.sqrt(len(shares))
        assert kept_lesions > 100


def test_a_calibration_from_before_knows_no_findings():
    calibration = calibrate({"a": [np.arange(400.0).reshape(20, 20)]})
    assert calibration.finding_p(np.array([3.0])) is not None
    tensors = {name: array for name, array in calibration.to_tensors().items() if not name.startswith("finding")}
    older = Calibration.from_tensors(tensors)
    assert older.finding_p(np.array([3.0])) is None
    grid = np.arange(400.0).reshape(20, 20)
    listed, number = findings(grid, older.healthy_quantile(grid), ALARM, 1.0, calibration=older)
    assert (number, listed[0].false_discovery_rate) == (1, None)


def test_where_nothing_healthy_is_marked_every_finding_has_p_1():
    """Too few places for one above 99 of 100."""
    calibration = calibrate({"a": [np.array([[0.0, 1.0]])], "b": [np.array([[2.0, 2.0]])]})
    again = Calibration.from_tensors(safetensors.numpy.load(safetensors.numpy.save(calibration.to_tensors())))
    for one in (calibration, again):
        assert one.finding_scores is not None
        assert one.finding_scores.size == 0
        assert one.finding_p(np.array([3.0, 9.0])).tolist() == [1, 1]


def test_a_damaged_list_of_findings_is_refused():
    tensors = calibrate({"a": [np.arange(400.0).reshape(20, 20)]}).to_tensors()
    with pytest.raises(FormatError, match="finding_scores and finding_weights have different sizes"):
        Calibration.from_tensors({**tensors, "finding_weights": np.ones(3)})
    with pytest.raises(FormatError, match="finding_scores and finding_weights have different sizes"):
        Calibration.from_tensors({k: v for k, v in tensors.items() if k != "finding_weights"})
    with pytest.raises(FormatError, match="finding_weights are shares"):
        Calibration.from_tensors({**tensors, "finding_weights": np.full(tensors["finding_scores"].shape, 2.0)})
