"""Scores of images are kept a file each, not computed twice, and an image that cannot be scored says why."""

import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from rayad import storage
from rayad.datasets import phantom
from rayad.datasets.exam import Lesion, source_of
from rayad.evaluation import metrics
from rayad.imaging import dermoscopy
from rayad.imaging.mammogram import Preprocessing
from rayad.pipeline.score import KeptScores, ScoredImage, ScoreExam, score_exam
from rayad.scoring.calibrate import calibrate
from rayad.scoring.combine import Aggregation
from rayad.scoring.detector import Combined, Detector
from rayad.scoring.scores import Floor


def floor(name: str, score: str, **changes) -> Detector:
    return Detector(name, Floor(score), Preprocessing(), provenance={"made_of": score}, **changes)


@pytest.fixture(scope="module")
def dataset() -> phantom.Dataset:
    return phantom.Dataset(patients=3, height=256, width=192, diseased=1.0)


def kept(dataset, folder, detectors, step) -> KeptScores:
    return KeptScores.of(dataset, dataset.exams(), str(folder), detectors, step)


def test_a_detector_that_is_added_costs_only_itself(dataset, tmp_path):
    exam = next(e for e in dataset.exams() if e.lesions)
    one, other = floor("a", "brightness"), floor("b", "top-hat")
    assert score_exam(dataset, kept(dataset, tmp_path, (one,), 8), exam) == ""
    before = {url: os.stat(url).st_mtime_ns for url in storage.listing(str(tmp_path))}
    both = kept(dataset, tmp_path, (one, other), 8)
    assert score_exam(dataset, both, exam) == ""
    after = {url: os.stat(url).st_mtime_ns for url in storage.listing(str(tmp_path))}
    assert len(after) == len(before) + 1
    assert all(after[url] == at for url, at in before.items())
    image = both.read(exam)
    assert set(image.scores) == set(image.seconds) == {"a", "b"}
    assert set(image.truth) == {lesion.kind for lesion in exam.lesions}
    assert all(np.array_equal(np.isfinite(s), image.tissue) for s in image.scores.values())


def test_an_image_with_a_lesion_of_unknown_place_has_no_healthy_places(dataset, tmp_path):
    exam = next(e for e in dataset.exams() if e.lesions)
    (known, *_), one = exam.lesions, floor("a", "brightness")
    unknown = Lesion(known.kind)
    for lesions, usable in (
        ((known,), True),
        ((known, unknown), False),
        ((known, replace(unknown, kind="other")), False),
    ):
        marked = replace(exam, lesions=lesions)
        keep = KeptScores.of(dataset, [marked], str(tmp_path), (one,), 8)
        assert score_exam(dataset, keep, marked) == ""
        assert metrics.usable(keep.read(marked).of("a"), known.kind) == usable


def test_another_aggregation_is_another_score(dataset, tmp_path):
    exam, one = dataset.exams()[0], floor("a", "brightness")
    smooth = replace(one, aggregation=Aggregation("gaussian", 6.0))
    for detector in (one, smooth):
        score_exam(dataset, kept(dataset, tmp_path, (detector,), 8), exam)
    assert len([url for url in storage.listing(str(tmp_path)) if "/a-" in url]) == 2


def test_the_time_of_a_combined_detector_is_that_of_its_members_too(dataset, tmp_path):
    exam, healthy = dataset.exams()[0], calibrate({"a": [np.random.default_rng(0).random((9, 9))]})
    members = tuple(floor(name, name, calibration=healthy) for name in ("brightness", "top-hat"))
    both = Detector("both", Combined("fisher", members), members[0].preprocessing, provenance={"made_of": "both"})
    keep = kept(dataset, tmp_path, (*members, both), 8)
    assert score_exam(dataset, keep, exam) == ""
    seconds = keep.read(exam).seconds
    assert seconds["both"] > seconds["brightness"] + seconds["top-hat"]


def test_members_that_were_scored_are_not_scored_again(dataset, tmp_path, monkeypatch):
    exam, healthy = dataset.exams()[0], calibrate({"a": [np.random.default_rng(0).random((9, 9))]})
    coarse = floor("brightness", "brightness", calibration=healthy)
    fine = replace(floor("top-hat", "top-hat", calibration=healthy), preprocessing=Preprocessing(spacing_mm=0.2))
    for member, step in ((coarse, 8), (fine, 16)):
        assert score_exam(dataset, kept(dataset, tmp_path, (member,), step), exam) == ""
    both = Detector("both", Combined("fisher", (coarse, fine)), coarse.preprocessing, provenance={"made_of": "both"})
    keep = kept(dataset, tmp_path, (both,), 8)
    alone = both.heatmap(both.preprocessing.prepare(source_of(dataset, exam)), 8).scores
    monkeypatch.setattr(Floor, "places", lambda *_: pytest.fail("a member was scored again"))
    assert score_exam(dataset, keep, exam) == ""
    assert np.array_equal(keep.read(exam).scores["both"], alone, equal_nan=True)


def test_a_detector_of_another_modality_is_answered_in_a_sentence(dataset, tmp_path):
    skin = Detector("skin", Floor("brightness"), dermoscopy.Preprocessing(), provenance={"made_of": "x"})
    said = score_exam(dataset, kept(dataset, tmp_path, (skin,), 64), dataset.exams()[0])
    assert said == "a dermoscopic image has three channels, this one is grey"
    assert storage.listing(str(tmp_path)) == []


def test_scores_and_truth_of_what_an_image_was_are_not_taken_for_what_it_is(dataset, tmp_path, capsys):
    exams, one = dataset.exams(), floor("a", "brightness")
    exam = next(e for e in exams if e.lesions)
    keep = kept(dataset, tmp_path / "scores", (one,), 8)
    assert score_exam(dataset, keep, exam) == ""
    assert keep.changed(exams) == 0
    assert capsys.readouterr().err == ""
    other = [replace(e, lesions=()) if e == exam else e for e in exams]
    again = KeptScores.of(dataset, other, str(tmp_path / "scores"), (one,), 8)
    assert f"1 of {len(exams)} images or their labels changed" in capsys.readouterr().err
    changed = other[exams.index(exam)]
    assert again.missing(changed) == [one]
    assert score_exam(dataset, again, changed) == ""
    assert keep.read(exam).truth.keys()
    assert not again.read(changed).truth
    assert KeptScores.of(dataset, other, str(tmp_path / "scores"), (one,), 8).changed(other) == 0


def test_an_image_that_was_prepared_elsewhere_scores_the_same(dataset, tmp_path):
    exam = dataset.exams()[0]
    work = [(dataset, kept(dataset, tmp_path / name, (floor("a", "top-hat"),), 8), "cpu") for name in ("one", "two")]
    alone, prepared = ScoreExam(*work[0])(exam), ScoreExam.prepare(*work[1], exam)
    apart = ScoreExam(*work[1])(exam, lambda: prepared)
    assert isinstance(alone, ScoredImage)
    assert isinstance(apart, ScoredImage)
    np.testing.assert_array_equal(alone.scores["a"], apart.scores["a"])
    np.testing.assert_array_equal(alone.tissue, apart.tissue)
    assert ScoreExam.prepare(*work[1], exam) is None  # it is scored, so nothing is prepared
    assert isinstance(ScoreExam(*work[1])(exam, lambda: None), ScoredImage)


def test_an_image_that_cannot_be_prepared_elsewhere_says_why(dataset, tmp_path):
    exam = replace(dataset.exams()[0], exam_id="phantom-0-0099-L")
    work = dataset, KeptScores(str(tmp_path), (floor("a", "top-hat"),), 8, {exam.exam_id: "content"}), "cpu"
    why = ScoreExam(*work)(exam)
    assert isinstance(why, str)
    assert ScoreExam(*work)(exam, partial(ScoreExam.prepare, *work, exam)) == why
