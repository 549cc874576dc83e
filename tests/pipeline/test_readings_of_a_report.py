"""What a report's page lets a reader answer is what the service says of the same image."""

from dataclasses import replace

import pytest

from rayad import storage
from rayad.datasets import phantom
from rayad.datasets.exam import circle_mask, source_of
from rayad.heatmaps.answers import DetectorName
from rayad.heatmaps.judgement import judge
from rayad.imaging.mammogram import Preprocessing
from rayad.pipeline.calibrate import calibrate_detectors
from rayad.pipeline.evaluate import Evaluation, evaluate
from rayad.pipeline.score import exams_of
from rayad.pool import Here
from rayad.scoring import bundle
from tests.pipeline.test_failures_of_scoring import BRIGHT

STEP_PX = 8
"""3.2 mm in px of the phantom, whose pixels are of 0.4 mm."""


def test_findings_of_a_report_are_where_the_service_says_in_px_of_the_image_as_it_came(tmp_path):
    dataset, scores = phantom.Dataset(patients=16, diseased=0.5), str(tmp_path / "scores")
    coarse = replace(BRIGHT, preprocessing=Preprocessing(spacing_mm=0.8))
    (detector,) = calibrate_detectors(Here(), [coarse], dataset, 3.2, scores)
    bundle.save(detector, str(tmp_path / "bright"))
    options = Evaluation("phantom", "", bundles={"bright": str(tmp_path / "bright")})
    evaluate(Here(), [detector], dataset, options, str(tmp_path / "report"), scores)
    results = storage.read_json(str(tmp_path / "report/results.json"))
    assert results["heatmap_sha256"] == bundle.sha256(str(tmp_path / "bright"))
    assert detector.calibration is not None
    listed = 0
    for row, exam in zip(results["images"], exams_of(dataset, "test"), strict=True):
        source = source_of(dataset, exam)
        prepared = detector.preprocessing.prepare(source)
        judged = judge(prepared, detector.heatmap(prepared, detector.step()), detector.calibration)
        answer = judged.answer(DetectorName(name="bright", sha256="0" * 64), {})
        assert row["shape"] == list(source.pixels.shape)
        for finding, told in zip(row["findings"], answer.findings, strict=True):
            assert (finding["row"], finding["col"]) == pytest.approx((told.row, told.column), abs=1e-3)
            places = finding["size_mm2"] / 3.2**2
            circle = circle_mask((801, 801), (400.0, 400.0, finding["radius"]))
            assert finding["radius"] >= STEP_PX
            if finding["radius"] > STEP_PX:
                assert circle.sum() == pytest.approx(places * STEP_PX**2, rel=0.03)
            listed += 1
    assert listed >= 3
