"""Verdicts on images: thresholds against brute force, and what cannot be a rule."""

import numpy as np
import pytest

from rayad.errors import OptionError
from rayad.heatmaps.answers import Verdict
from rayad.imaging.mammogram import Preprocessing
from rayad.scoring.calibrate import Calibration, calibrate, image_score
from rayad.scoring.detector import Detector
from rayad.scoring.rule import Rule, parse
from rayad.scoring.scores import Floor

RANDOM = np.random.default_rng(0)
PATIENTS = {f"p{k}": [RANDOM.normal(size=(6, 5)) for _ in range(1 + k % 3)] for k in range(40)}


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(PATIENTS)


def test_mean_and_deviations_weigh_patients_alike(calibration):
    scores = [[image_score(image) for image in images] for images in PATIENTS.values()]
    mean = np.mean([np.mean(of_patient) for of_patient in scores])
    variance = np.mean([np.mean(np.square(np.array(of_patient) - mean)) for of_patient in scores])
    assert parse("sd=2").threshold(calibration) == pytest.approx(mean + 2 * np.sqrt(variance))


def test_a_quantile_and_a_score_that_is_given(calibration):
    scores = [image_score(image) for images in PATIENTS.values() for image in images]
    assert parse("quantile=0.9").threshold(calibration) == pytest.approx(np.quantile(scores, 0.9))
    assert parse("score=-1.5").threshold(calibration) == -1.5


@pytest.mark.parametrize("rate", [0.025, 0.05, 0.1, 0.3, 0.99])
def test_a_rate_of_false_alarms_is_the_p_value_that_it_allows(calibration, rate):
    rule = Rule("fpr", rate)
    for score in (*calibration.image_scores, *(calibration.image_scores + 1e-9), -9.0, 9.0):
        assert (rule.verdict(score, calibration) == "abnormal") == (calibration.image_p(score) <= rate)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mean=3", "a rule is sd=K, quantile=Q, fpr=RATE or score=S, not 'mean=3'"),
        ("sd=much", "sd is a number, not 'much'"),
        ("quantile=1.5", "quantile of a rule is between 0 and 1, not 1.5"),
        ("fpr=0", "fpr of a rule is between 0 and 1, not 0"),
        ("score=nan", "finite"),
    ],
)
def test_what_is_no_rule(text, reason):
    with pytest.raises(OptionError, match=reason):
        parse(text)


def test_few_patients_cannot_give_a_small_share_of_false_alarms(calibration):
    with pytest.raises(OptionError, match=r"fpr=0.01 needs 99 healthy patients or more, .* calibrated on 40"):
        parse("fpr=0.01").threshold(calibration)
    detector = Detector("top-hat", Floor("top-hat"), Preprocessing(), calibration=calibration)
    with pytest.raises(OptionError, match=r"fpr=0.01 needs 99"):
        detector.ruled("fpr=0.01")


def test_a_detector_keeps_its_rule_and_loses_it(calibration):
    detector = Detector("top-hat", Floor("top-hat"), Preprocessing(), calibration=calibration)
    assert detector.rule is None
    ruled = detector.ruled("sd=3.0")
    assert (ruled.rule, ruled.provenance["rule"]) == (Rule("sd", 3.0), "sd=3")
    assert ruled.ruled("").provenance == detector.provenance


def test_an_answer_without_a_rule_says_neither_word():
    assert Verdict(score=1.0, p_value=0.5).verdict == ""
