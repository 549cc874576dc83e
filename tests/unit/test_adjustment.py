"""Scores given the place: a normal score of known mean and spread becomes its number of standard deviations."""

import numpy as np
import pytest
from damaged import damaged
from scipy import stats

from rayad import storage
from rayad.datasets import phantom
from rayad.errors import DatasetError, FormatError, OptionError
from rayad.imaging.mammogram import Preprocessing
from rayad.imaging.picture import Prepared, Source
from rayad.imaging.position import position
from rayad.pipeline.adjust import adjust_detectors
from rayad.pipeline.detectors import aggregated, asked
from rayad.pool import Here
from rayad.scoring import bundle
from rayad.scoring.adjustment import HIGHEST, LOWEST, Adjustment, adjust
from rayad.scoring.calibrate import calibrate
from rayad.scoring.check import faults
from rayad.scoring.combine import PLAIN, Aggregation, aggregate
from rayad.scoring.detector import Detector
from rayad.scoring.scores import Floor

PHANTOMS = phantom.Dataset(patients=8, diseased=0.0, height=256, width=192)
BRIGHT = Detector("bright", Floor("brightness"), Preprocessing(), provenance={"made_of": "bright"})


def normal(images: int, places: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores whose mean and spread follow from the place."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(images):
        coordinates = rng.random((places, 4)) * [1, 2, 2, 2]
        made.append((mean(coordinates) + spread(coordinates) * rng.standard_normal(places), coordinates))
    return made


def mean(coordinates: np.ndarray) -> np.ndarray:
    return 10 + 5 * coordinates[:, 0] - 2 * coordinates[:, 1]


def spread(coordinates: np.ndarray) -> np.ndarray:
    return 1 + coordinates[:, 2]


def test_a_normal_score_becomes_its_number_of_standard_deviations():
    learned = adjust(normal(40, 1500, 0))
    scores, coordinates = normal(1, 20_000, 1)[0]
    adjusted, truth = learned.adjusted(scores, coordinates), (scores - mean(coordinates)) / spread(coordinates)
    assert np.corrcoef(adjusted, np.clip(truth, LOWEST, HIGHEST))[0, 1] > 0.95  # a knot knows 300 places alone
    assert stats.pearsonr(scores, truth).statistic < 0.85  # as it is, it says where the place lies
    for quarter in np.array_split(np.argsort(spread(coordinates)), 4):  # alike wherever the place lies
        assert np.median(adjusted[quarter]) == pytest.approx(0, abs=0.1)
        assert np.quantile(adjusted[quarter], stats.norm.cdf(1)) == pytest.approx(1, abs=0.12)


def test_adjusted_scores_are_cut_and_alike_where_all_healthy_scores_are():
    coordinates = np.random.default_rng(0).random((4000, 4))
    scores = np.where(coordinates[:, 0] < 0.5, 0.0, np.random.default_rng(1).random(4000))
    learned = adjust([(scores, coordinates)])
    extreme = learned.adjusted(np.array([-1e6, 1e6, 0.0]), np.array([[0.9] * 4, [0.9] * 4, [0.1, 0.5, 0.5, 0.5]]))
    assert extreme.tolist() == [LOWEST, HIGHEST, 0.0]
    assert (learned.spreads > 0).all()


def test_what_cannot_be_learned_from_is_refused():
    scores, coordinates = normal(1, 400, 0)[0]
    with pytest.raises(DatasetError, match="at least one healthy image"):
        adjust([])
    with pytest.raises(OptionError, match="300 healthy places, got 299"):
        adjust([(scores[:299], coordinates[:299])])
    with pytest.raises(DatasetError, match="all healthy places score 2"):
        adjust([(np.full(400, 2.0), coordinates)])
    with pytest.raises(DatasetError, match="not finite"):
        adjust([(np.where(scores > 10, np.inf, scores), coordinates)])


def half_disc() -> Prepared:
    """A half disc at the left border, the lowest part of which is not scored."""
    y, x = np.ogrid[:200, :120]
    body = (y - 100) ** 2 + x**2 < 90**2
    pixels = np.full(body.shape, 0.5, np.float32) * body
    return Prepared(pixels, pixels, body, body & (y < 170), 0.8, Source(pixels, 0.8))


def mirrored(image: Prepared) -> Prepared:
    pixels, body, tissue = (np.ascontiguousarray(a[:, ::-1]) for a in (image.stored, image.body, image.tissue))
    return Prepared(pixels, pixels, body, tissue, 0.8, Source(pixels, 0.8))


def test_a_place_has_its_coordinates_and_a_mirrored_breast_the_same():
    image, rows, columns = half_disc(), np.arange(12, 190, 8), np.arange(4, 120, 8)
    coordinates = position(image, rows, columns)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    inside = image.tissue[np.ix_(rows, columns)]
    depth_mm = (90 - np.hypot(y - 100, x)) * 0.8
    assert coordinates[..., 0][inside] * 20 == pytest.approx(depth_mm[inside], abs=1.2)
    assert coordinates[..., 1][inside] == pytest.approx((2 * (y - 11) / 178)[inside], abs=0.02)
    assert coordinates[..., 2][inside] == pytest.approx((2 * x / 89)[inside], abs=0.03)
    outside = np.argwhere(~image.tissue)
    pairs = zip(y[inside], x[inside], strict=True)
    nearest = [np.sqrt(((outside - pair) ** 2).sum(1).min()) * 0.8 for pair in pairs]
    assert coordinates[..., 3][inside] * 15 == pytest.approx(np.minimum(nearest, 30), abs=0.01)
    other = position(mirrored(image), rows, 119 - columns)
    assert other[inside] == pytest.approx(coordinates[inside], abs=0.03)


def adjusted_detector(url: str, smooth_mm: float = 0.0, base: Detector = BRIGHT) -> Detector:
    (adjusted,) = adjust_detectors(Here(), [base], [Aggregation("gaussian", smooth_mm)], PHANTOMS, 3.2, [url])
    return adjusted


def first_image() -> Prepared:
    exam = PHANTOMS.exams()[0]
    return Preprocessing().prepare(Source(PHANTOMS.pixels(exam), exam.spacing_mm))


def test_a_stage_makes_a_bundle_that_scores_as_its_detector_and_is_not_made_again(tmp_path):
    url, image = str(tmp_path / "a"), first_image()
    made = adjusted_detector(url, 6.0)
    assert made.calibration is None
    assert "adjusted for the place" in made.summary()
    before = (tmp_path / "a" / "detector.json").stat().st_mtime_ns
    loaded = adjusted_detector(url, 6.0)
    assert (tmp_path / "a" / "detector.json").stat().st_mtime_ns == before
    assert faults(url) == []
    scores = made.heatmap(image, 8).scores
    assert np.array_equal(loaded.heatmap(image, 8).scores, scores, equal_nan=True)
    plain = adjusted_detector(str(tmp_path / "b")).heatmap(image, 8)
    expected = aggregate(plain.scores, plain.tissue, Aggregation("gaussian", 6.0), 3.2)
    assert scores == pytest.approx(expected, nan_ok=True)
    assert adjusted_detector(url, 3.0).provenance["made_of"] != made.provenance["made_of"]


def test_it_is_learned_of_healthy_training_patients_alone(tmp_path):
    dataset, first = damaged("train", patients=8)
    with pytest.raises(DatasetError, match=f"max_failures is 0: {first}: .*the file ends early"):
        adjust_detectors(Here(), [BRIGHT], [PLAIN], dataset, 3.2, [str(tmp_path)])
    (made,) = adjust_detectors(Here(), [BRIGHT], [PLAIN], dataset, 3.2, [str(tmp_path)], 1)
    assert made.adjustment is not None
    dataset, _ = damaged("test", diseased=0.4, patients=8)  # never read
    adjust_detectors(Here(), [BRIGHT], [PLAIN], dataset, 3.2, [str(tmp_path / "other")])


def test_another_score_or_aggregation_is_not_adjusted_by_what_was_learned_for_this_one(tmp_path):
    made = adjusted_detector(str(tmp_path))
    assert asked(made, "x", "top-hat").adjustment is None
    assert aggregated(made, Aggregation("maximum", 6.4)).adjustment is None
    calibrated = made.calibrated(calibrate({"a": [np.arange(4.0).reshape(2, 2)]}))
    assert adjusted_detector(str(tmp_path / "again"), base=calibrated).calibration is None


def test_a_bundle_of_schema_4_is_read_as_one_that_is_not_adjusted(tmp_path):
    bundle.save(BRIGHT, str(tmp_path))
    description = storage.read_json(f"{tmp_path}/detector.json")
    old = {name: value for name, value in description.items() if name != "adjustment"} | {"schema": 4}
    storage.write_json(f"{tmp_path}/detector.json", old)
    assert bundle.load(str(tmp_path)).adjustment is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"knots": np.zeros((9, 3), np.float32)}, "rows of 4 coordinates"),
        ({"knots": np.zeros((0, 4), np.float32)}, "1 to 65,536 rows"),
        ({"medians": np.zeros(8, np.float32)}, "medians has another size than the 9 knots"),
        ({"medians": np.full(9, np.nan, np.float32)}, "medians holds numbers that are not finite"),
        ({"spreads": np.zeros(9, np.float32)}, "a spread is not more than 0"),
        ({"spreads": np.zeros(9, np.int64)}, "spreads holds numbers that are not finite"),
    ],
)
def test_arrays_that_are_no_adjustment_are_refused(change, sentence):
    whole = Adjustment(np.zeros((9, 4), np.float32), np.zeros(9, np.float32), np.ones(9, np.float32))
    assert Adjustment.from_tensors(whole.to_tensors(), PLAIN).knots.shape == (9, 4)
    with pytest.raises(FormatError, match=sentence):
        Adjustment.from_tensors(whole.to_tensors() | change, PLAIN)
    with pytest.raises(FormatError, match="arrays spreads are missing"):
        Adjustment.from_tensors({"knots": whole.knots, "medians": whole.medians}, PLAIN)
