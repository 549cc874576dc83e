"""What a report draws is what its table says: the masks of Fig. 2, the places of Fig. 3, the verdicts of its list."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import directed_hausdorff

from rayad.datasets import phantom
from rayad.datasets.exam import Exam
from rayad.evaluation.metrics import Scored
from rayad.evaluation.table import Options, rows
from rayad.imaging.mammogram import Preprocessing
from rayad.models import cae
from rayad.pipeline.pictures import Shown, _classes, _compared, _side_by_side
from rayad.pipeline.score import ScoredImage
from rayad.scoring.calibrate import calibrate, image_score
from rayad.scoring.detector import Detector
from rayad.scoring.scores import Floor, ModelScore, Part

DATASET = phantom.Dataset()
FEW = Options(resamples=20, comparison_resamples=20)


def scored(seed: int, kind: str = "mass") -> Scored:
    """A diseased image whose lesion stands out a little."""
    generator = np.random.default_rng(seed)
    tissue, truth = np.ones((12, 10), bool), np.zeros((12, 10), bool)
    tissue[:, -2:] = False
    truth[seed % 6 : seed % 6 + 4, 2:5] = True
    scores = np.where(tissue, generator.normal(size=tissue.shape) + truth, np.nan)
    return Scored(f"e{seed}", f"p{seed}", True, scores, tissue, {kind: truth}, 3.2)


@pytest.fixture(scope="module")
def healthy():
    generator = np.random.default_rng(9)
    return calibrate({str(number): [generator.normal(size=(12, 10))] for number in range(20)})


@pytest.mark.parametrize("seed", range(4))
def test_the_number_beside_a_mask_is_the_distance_of_the_mask_that_is_drawn_and_of_the_table(healthy, seed):
    image = scored(seed)
    drawn = _compared(healthy, image, "mass")
    mask, lesion = np.argwhere(drawn.mask), np.argwhere(image.truth["mass"])
    truth = max(directed_hausdorff(mask, lesion)[0], directed_hausdorff(lesion, mask)[0])
    (row,) = rows("cae", [image], ["mass"], threshold=2.0, options=FEW)
    assert drawn.distance == pytest.approx(truth)
    assert row["hausdorff_px"]["mean"] == pytest.approx(truth)
    highest = np.nanpercentile(image.scores, 99)
    assert set(map(tuple, mask)) == set(map(tuple, np.argwhere(image.scores > highest)))


def test_healthy_places_are_those_outside_of_lesions_also_where_no_image_is_healthy():
    images = [scored(seed, kind) for seed, kind in enumerate(["mass", "mass", "calcification"])]
    classes = _classes(images, ["mass", "calcification"])
    outside = [image.scores[image.tissue & ~next(iter(image.truth.values()))] for image in images]
    inside = {
        kind: np.concatenate([i.scores[i.truth[kind] & i.tissue] for i in images if kind in i.truth])
        for kind in ("mass", "calcification")
    }
    assert classes["healthy"].tolist() == np.concatenate(outside).tolist()
    assert {kind: classes[kind].tolist() for kind in inside} == {kind: inside[kind].tolist() for kind in inside}


def test_the_list_of_images_says_of_each_whether_it_is_abnormal(healthy):
    images = [scored(seed) for seed in range(6)]
    values = sorted(image_score(image.scores) for image in images)
    threshold = (values[2] + values[3]) / 2
    without_rule = Detector("floor", Floor("brightness"), Preprocessing(), calibration=healthy)
    detector = without_rule.ruled(f"score={threshold}")
    shown = [
        ScoredImage(
            exam=Exam(image.exam_id, image.patient_id, image.exam_id, True, "MLO", "L", "", 0.2),
            rows=np.arange(12),
            columns=np.arange(10),
            tissue=image.tissue,
            scores={"floor": image.scores},
            truth=image.truth,
            seconds={"floor": 0.0},
            step_mm=3.2,
            reflected=0,
            between=0,
        )
        for image in images
    ]
    report = Shown(detector, (detector,), {"floor": healthy}, DATASET, {"floor": shown}, {"floor": images}, ("mass",))
    expected = ["abnormal" if image_score(image.scores) > threshold else "normal" for image in images]
    assert [row["verdict"] for row in report.listed()] == expected
    assert expected.count("abnormal") == 3
    assert all("verdict" not in row for row in replace(report, main=without_rule).listed())


def test_a_panel_compares_what_sees_the_same_picture_of_an_image():
    config = cae.Config(width=1, latents=2)
    score, coarse = ModelScore(Part("cae", config, config.build()), "reconstruction"), Preprocessing(spacing_mm=0.8)
    floor, top_hat = (Detector(name, Floor(name), Preprocessing()) for name in ("brightness", "top-hat"))
    learned, elsewhere = (Detector(f"cae {p.spacing_mm}", score, p) for p in (Preprocessing(), coarse))
    assert _side_by_side(floor, [floor, top_hat, elsewhere]) == [floor, top_hat]
    assert _side_by_side(floor, [floor, top_hat, elsewhere, learned]) == [learned]
    assert _side_by_side(elsewhere, [floor, elsewhere, learned]) == [elsewhere]
