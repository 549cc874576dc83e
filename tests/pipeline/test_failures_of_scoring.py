"""Images that cannot be scored: as many as are allowed cost themselves alone; one more ends the stage in a sentence."""

from dataclasses import replace

import numpy as np
import pytest
from damaged import damaged

from rayad import storage
from rayad.datasets import phantom
from rayad.errors import DatasetError
from rayad.imaging.mammogram import Preprocessing
from rayad.pipeline.calibrate import calibrate_detectors
from rayad.pipeline.combine import combine
from rayad.pipeline.evaluate import Evaluation, evaluate
from rayad.pipeline.score import exams_of
from rayad.pool import Here
from rayad.scoring.detector import Combined, Detector
from rayad.scoring.scores import Floor

ORIGIN = dict.fromkeys(("corpus", "dataset", "commit", "versions", "machine"), "") | {"seed": 0, "step_mm": 3.2}
BRIGHT = Detector("bright", Floor("brightness"), Preprocessing(), provenance=ORIGIN | {"made_of": "bright"})
TOP_HAT = replace(BRIGHT, name="top-hat", score=Floor("top-hat"), provenance=ORIGIN | {"made_of": "top-hat"})


def test_calibration_goes_on_without_as_many_images_as_are_allowed(tmp_path):
    dataset, first = damaged("calibration")
    sentence = f"1 of [0-9]+ images could not be scored, and max_failures is 0: {first}: .*the file ends early"
    with pytest.raises(DatasetError, match=sentence):
        calibrate_detectors(Here(), [BRIGHT], dataset, 3.2, str(tmp_path))
    (calibrated,) = calibrate_detectors(Here(), [BRIGHT], dataset, 3.2, str(tmp_path), max_failures=1)
    assert calibrated.calibration is not None
    images = len(exams_of(dataset, "calibration"))
    assert len(calibrated.calibration.image_scores) == images - 1
    with pytest.raises(DatasetError, match=sentence):  # it is tried again, not taken for calibrated
        calibrate_detectors(Here(), [calibrated], dataset, 3.2, str(tmp_path))
    (whole,) = calibrate_detectors(Here(), [calibrated], replace(dataset, damaged=""), 3.2, str(tmp_path))
    assert whole.calibration is not None
    assert len(whole.calibration.image_scores) == images


def test_a_detector_that_was_calibrated_before_findings_were_kept_is_calibrated_again(tmp_path):
    how = phantom.Dataset(patients=12), 3.2, str(tmp_path)
    (calibrated,) = calibrate_detectors(Here(), [BRIGHT], *how)
    assert calibrated.calibration is not None
    assert calibrate_detectors(Here(), [calibrated], *how) == [calibrated]
    kept = calibrated.calibration.finding_scores
    assert kept is not None
    older = replace(calibrated, calibration=replace(calibrated.calibration, finding_scores=None, finding_weights=None))
    (again,) = calibrate_detectors(Here(), [older], *how)
    assert again.calibration is not None
    assert again.calibration.finding_scores is not None
    assert np.array_equal(again.calibration.finding_scores, kept)


def test_a_combination_goes_on_without_them(tmp_path):
    dataset, _ = damaged("validation")
    how = Here(), "both", "fisher", [BRIGHT, TOP_HAT], dataset, 3.2, str(tmp_path)
    with pytest.raises(DatasetError, match="max_failures is 0"):
        combine(*how)
    score = combine(*how, max_failures=1).score
    assert isinstance(score, Combined)
    images = {len(member.calibration.image_scores) for member in score.members if member.calibration}
    assert images == {len(exams_of(dataset, "validation")) - 1}


def test_a_report_says_what_it_has_lost_and_judges_all_detectors_on_the_same_images(tmp_path):
    dataset, first = damaged("test", diseased=0.5)
    coarse = replace(TOP_HAT, preprocessing=Preprocessing(spacing_mm=0.8))
    scores = str(tmp_path / "scores")
    detectors = [calibrate_detectors(Here(), [one], dataset, 3.2, scores)[0] for one in (BRIGHT, coarse)]
    how = Here(), detectors, dataset
    with pytest.raises(DatasetError, match="max_failures is 0"):
        evaluate(*how, Evaluation("phantom", ""), str(tmp_path / "report"), scores)
    evaluate(*how, Evaluation("phantom", "", max_failures=1), str(tmp_path / "report"), scores)
    results = storage.read_json(str(tmp_path / "report" / "results.json"))
    images = len(exams_of(dataset, "test"))
    (failure,) = results["failures"]
    assert failure["exam_id"] == first
    assert "the file ends early" in failure["reason"]
    assert len(results["images"]) == images - 1
    page = storage.read_bytes(str(tmp_path / "report" / "index.html")).decode()
    assert "Images that could not be used: 1" in page
    with pytest.raises(DatasetError, match="max_failures is 0"):  # the report that is there is no answer to that
        evaluate(*how, Evaluation("phantom", ""), str(tmp_path / "report"), scores)
