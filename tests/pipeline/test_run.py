"""A run with detectors that learn nothing: whose images are judged, in which order, and what is kept."""

import os
from dataclasses import replace

import pytest

from rayad import storage
from rayad.imaging.mammogram import Preprocessing
from rayad.patches.corpus import Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.run import Data, Recipe, Run, RunRequest, run_recipe
from rayad.pool import Here
from rayad.scoring.detector import Detector

SMALL = ("height=256", "width=192")
HEALTHY = Data("phantom", settings=("patients=24", "diseased=0", *SMALL))
OTHERS = Data("phantom", settings=("patients=6", "diseased=0.5", "seed=1", *SMALL))


def floors(run: Run) -> list[Detector]:
    corpus = run.corpus(Ingest(Preprocessing(spacing_mm=0.8), Sampling(patches=2)))
    one, other = run.floor(corpus, "brightness"), run.floor(corpus, "top-hat")
    return [one, other, run.combine("both", "fisher", [one, other])]


RECIPE = Recipe("floors", floors, kinds=("mass",), step_mm=6.4, order=("both",), first="First")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("run"))
    assert run_recipe(Here(), RunRequest(RECIPE, HEALTHY, OTHERS), out) == f"{out}/report/index.html"
    return out


def test_all_labelled_images_of_the_other_data_are_judged(place):
    results = storage.read_json(f"{place}/report/results.json")
    diseased = {exam.patient_id for exam in OTHERS.opened().exams() if exam.anomalous}
    rows = {row["detector"]: row for row in results["rows"]}
    assert list(rows) == ["both", "brightness", "top-hat"]
    assert {row["exam_auc"]["healthy"] for row in rows.values()} == {6 - len(diseased)}
    assert 0 < rows["both"]["patients"] <= len(diseased)
    assert results["provenance"]["split"] == "every"
    assert results["groups"] == {"both": "First", "brightness": "Learn nothing", "top-hat": "Learn nothing"}


def test_what_is_done_is_not_done_again(place):
    before = {url: os.stat(url).st_mtime_ns for url in storage.listing(place)}
    run_recipe(Here(), RunRequest(RECIPE, HEALTHY, OTHERS), place)
    assert {url: os.stat(url).st_mtime_ns for url in storage.listing(place)} == before


def test_without_a_finding_there_is_no_report(place):
    no_kinds = replace(RECIPE, kinds=())
    assert run_recipe(Here(), RunRequest(no_kinds, HEALTHY), place) == ""
