"""From detectors and labels to a taught one: by readings, marked lesions, labels of images; and who is never judged."""

from dataclasses import replace

import numpy as np
import pytest

from rayad import cli, storage
from rayad.datasets import folder, phantom
from rayad.datasets.exam import source_of
from rayad.datasets.splits import assign
from rayad.errors import DatasetError, OptionError
from rayad.imaging.mammogram import Preprocessing
from rayad.pipeline.calibrate import calibrate_detectors
from rayad.pipeline.combine import combine
from rayad.pipeline.detectors import not_taught_by, patient_hash
from rayad.pipeline.evaluate import Evaluation, evaluate
from rayad.pipeline.requests import TeachRequest
from rayad.pipeline.score import exams_of
from rayad.pipeline.streamed import streamed
from rayad.pipeline.teach import teach
from rayad.pool import Here
from rayad.scoring import bundle
from rayad.scoring.check import faults
from rayad.scoring.detector import Detector, Taught
from rayad.scoring.scores import Floor

ORIGIN = dict.fromkeys(("corpus", "dataset", "commit", "versions", "machine"), "") | {"seed": 0, "step_mm": 3.2}
BRIGHT = Detector("bright", Floor("brightness"), Preprocessing(spacing_mm=0.8), provenance=ORIGIN | {"made_of": "b"})
TOP_HAT = replace(
    BRIGHT,
    name="raised",
    score=Floor("relative-brightness"),
    preprocessing=Preprocessing(intensity="relative"),
    provenance=ORIGIN | {"made_of": "t"},
)
"""Another picture of the image, so another grid."""
DATASET = phantom.Dataset(patients=24, height=256, width=192, spacing_mm=0.8)
MASSES = TeachRequest(lesions=("mass",))


@pytest.fixture(scope="module")
def scores(tmp_path_factory) -> str:
    """Where members' scores are kept from test to test."""
    return str(tmp_path_factory.mktemp("scores"))


def taught(scores: str, request: TeachRequest = MASSES, name: str = "taught", **instead) -> Detector:
    return teach(Here(), name, request, [BRIGHT, TOP_HAT], instead.get("dataset", DATASET), 3.2, scores)


@pytest.mark.parametrize("kind", ["logistic", "forest"])
def test_a_bundle_scores_as_what_was_taught(scores, tmp_path, kind):
    made = taught(scores, replace(MASSES, kind=kind))
    url = str(tmp_path / "taught")
    bundle.save(made, url)
    loaded = bundle.load(url)
    assert faults(url) == []
    assert isinstance(loaded.score, Taught)
    assert loaded.score.name == kind
    image = made.preprocessing.prepare(source_of(DATASET, exams_of(DATASET, "test")[0]))
    heatmaps = [detector.heatmap(image, 4) for detector in (made, loaded)]
    assert np.array_equal(*(heatmap.scores for heatmap in heatmaps), equal_nan=True)
    assert np.isfinite(heatmaps[0].scores[heatmaps[0].tissue]).all()
    assert np.isnan(heatmaps[0].scores[~heatmaps[0].tissue]).all()


def test_labels_of_one_patient_leave_the_places_in_the_order_of_the_first_detector(scores):
    one = taught(scores, TeachRequest(marked=1))
    (exam, *_) = exams_of(DATASET, "test")
    image = one.preprocessing.prepare(source_of(DATASET, exam))
    assert isinstance(one.score, Taught)
    first = one.score.members[0].heatmap(image, 4)
    own = one.heatmap(image, 4)
    order = np.argsort(first.scores[first.tissue], kind="stable")
    assert (np.diff(own.scores[own.tissue][order]) >= -1e-5).all()  # the same order of places


def test_a_patient_who_taught_is_never_judged(scores, tmp_path, capsys):
    """Not with the taught detector, nor with one that is made of it; nor does it calibrate."""
    teachers = {exam.patient_id for exam in exams_of(DATASET, "test") if exam.anomalous}
    first = sorted(teachers)[0]
    made = taught(scores, TeachRequest(patients=(first,)))
    assert made.provenance["taught_by"] == [patient_hash(first)]
    assert first not in str(made.provenance)
    both = combine(Here(), "both", "fisher", [made, TOP_HAT], DATASET, 3.2, scores)
    assert both.provenance["taught_by"] == [patient_hash(first)]
    left, sentence = not_taught_by([both, BRIGHT], exams_of(DATASET, "test"))
    assert (len(left), first in {exam.patient_id for exam in left}) == (len(exams_of(DATASET, "test")) - 2, False)
    assert sentence == "2 images of 1 patients are left out: their labels taught both"
    made, plain = (calibrate_detectors(Here(), [d], DATASET, 3.2, scores)[0] for d in (made, BRIGHT))
    evaluate(Here(), [made, plain], DATASET, Evaluation("phantom", "", kinds=("mass",)), str(tmp_path), scores)
    results = storage.read_json(f"{tmp_path}/results.json")
    assert first not in {image["patient_id"] for image in results["images"]}
    assert len(results["images"]) == len(left)
    assert results["remarks"] == {"taught": "labels of 1 patients taught it"}
    page = storage.read_bytes(f"{tmp_path}/index.html").decode()
    assert "none was shown a real lesion, but those whose row says so." in page
    assert sentence.replace("both", "taught") + "." in results["notes"]
    assert "test: " + sentence.replace("both", "taught") in capsys.readouterr().err
    streamed(Here(), [made], DATASET, Evaluation("phantom", ""), str(tmp_path / "streamed"))
    assert storage.read_json(f"{tmp_path}/streamed/streamed.json")["left_out"] == sentence.replace("both", "taught")
    everybody = replace(made, provenance=made.provenance | {"taught_by": [patient_hash(p) for p in patients("test")]})
    (calibrated,) = calibrate_detectors(Here(), [everybody], DATASET, 3.2, scores)
    with pytest.raises(OptionError, match="their labels taught taught; no other patient is there"):
        evaluate(Here(), [calibrated], DATASET, Evaluation("phantom", ""), str(tmp_path / "none"), scores)
    calibrating = [patient_hash(p) for p in patients("calibration")]
    some = replace(made, provenance=made.provenance | {"taught_by": calibrating[:1]})
    (fewer,) = calibrate_detectors(Here(), [some], DATASET, 3.2, scores)
    assert fewer.calibration is not None
    assert fewer.calibration.patients == len(calibrating) - 1


def patients(split: str) -> list[str]:
    return sorted({exam.patient_id for exam in exams_of(DATASET, split)})


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> folder.Dataset:
    """The same images as files."""
    url = tmp_path_factory.mktemp("images")
    folder.export(DATASET, DATASET.exams(), str(url))
    return folder.Dataset(str(url))


def table(exams, rows: list[str], url) -> str:
    url.write_text("image,row,col,radius,reading\n" + "\n".join(rows))
    return str(url)


def test_readings_teach_and_those_of_calibration_patients_do_not(exported, tmp_path, capsys):
    exams = exported.exams()
    splits = assign(exams)
    accepted = [exam for exam in exams if exam.anomalous and splits[exam.exam_id] == "development"][:3]
    healthy = next(exam for exam in exams if splits[exam.exam_id] == "calibration")
    rows = []
    for exam in accepted:
        rows_of, columns = np.nonzero(exported.lesion_mask(exam, exam.lesions[0]))
        rows.append(f"{exam.exam_id},{rows_of.mean():.1f},{columns.mean():.1f},6,accepted")
        rows.append(f"{exam.exam_id},20,20,4,rejected")
    rows.append(f"{healthy.exam_id},30,30,6,rejected")
    request = TeachRequest(readings=table(exams, rows, tmp_path / "readings.csv"))
    made = taught(str(tmp_path / "scores"), request, dataset=exported)
    assert "3 lesions, 3 rejected findings in 3 images of 3 patients" in made.provenance["settings"]
    assert made.provenance["taught_by"] == sorted(patient_hash(exam.patient_id) for exam in accepted)
    assert "readings of 1 images of calibration patients are left out" in capsys.readouterr().err
    only = TeachRequest(readings=table(exams, rows[-1:], tmp_path / "only.csv"))
    with pytest.raises(OptionError, match="no label to learn from"):
        taught(str(tmp_path / "scores"), only, dataset=exported)
    far = TeachRequest(readings=table(exams, [f"{accepted[0].exam_id},9000,9000,5,accepted"], tmp_path / "far.csv"))
    with pytest.raises(DatasetError, match="a finding at row 9000, col 9000 lies outside of it"):
        taught(str(tmp_path / "scores"), far, dataset=exported)


def test_labels_of_images_alone_teach(scores):
    made = taught(scores, TeachRequest(labels="images", lesions=("mass",)))
    images = [exam for exam in exams_of(DATASET, "development") if any(x.kind == "mass" for x in exam.lesions)]
    assert f"taught by labels of images in {len(images)} images" in made.provenance["settings"]


@pytest.mark.long
def test_as_many_lesions_teach_as_are_wanted_and_the_seed_draws_them(scores):
    drawn = [taught(scores, TeachRequest(marked=2, seed=seed)).provenance["taught_by"] for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({tuple(hashes) for hashes in drawn}) > 1
    with pytest.raises(OptionError, match="99 marked lesions are wanted, there are"):
        taught(scores, TeachRequest(marked=99))
    with pytest.raises(OptionError, match="1 of the 2 patients not"):
        taught(scores, TeachRequest(patients=("nobody", patients("test")[0])))
    with pytest.raises(OptionError, match="none of bright, raised has a model with latents"):
        taught(scores, TeachRequest(features="scores-and-latents"))
    with pytest.raises(OptionError, match="readings say which findings teach"):
        TeachRequest(readings="x.csv", marked=3)


@pytest.mark.long
def test_the_command(exported, tmp_path, capsys):
    bundle.save(BRIGHT, str(tmp_path / "bright"))
    bundle.save(TOP_HAT, str(tmp_path / "raised"))
    members = [str(tmp_path / name) for name in ("bright", "raised")]
    of_dataset = ["--dataset", "folder", "--source", exported.source]
    out = str(tmp_path / "taught")
    options = ["--name", "taught", "--out", out, "--scores", str(tmp_path / "scores"), "--lesions", "mass"]
    assert cli.run(["teach", "--detector", *members, *of_dataset, *options, "--marked", "3"]) == 0
    assert "taught: logistic of scores, taught by 3 lesions" in capsys.readouterr().out
    assert cli.run(["calibrate", "--detector", out, *of_dataset, "--scores", str(tmp_path / "scores")]) == 0
    assert cli.run(["check", "--detector", out]) == 0
    assert "taught scores by logistic, of bright, raised, calibrated on" in capsys.readouterr().out
    assert cli.run(["teach", "--detector", *members, *of_dataset, *options[:-2], "--readings", "no.csv"]) != 0
    assert "no.csv" in capsys.readouterr().err.splitlines()[-1]
