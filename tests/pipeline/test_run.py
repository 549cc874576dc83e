"""A run: whose images are judged, in which order, what is kept, and what the page says of rows and shows of models."""

import os
from dataclasses import replace

import pytest
from PIL import Image

from rayad import storage
from rayad.datasets import phantom
from rayad.datasets.exams import Dataset as ListOfImages
from rayad.datasets.splits import assign
from rayad.density.em import EM
from rayad.errors import OptionError
from rayad.fit import Schedule
from rayad.imaging.mammogram import Preprocessing
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.detectors import inherited
from rayad.pipeline.evaluate import Evaluation, _remark, evaluate
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.run import Changes, Data, Recipe, Run, RunRequest, rehearse, run_recipe
from rayad.pool import Here
from rayad.scoring import bundle
from rayad.scoring.detector import Detector

SMALL = ("height=128", "width=96", "spacing_mm=0.8")
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
    assert any(note.startswith("Places are ") for note in results["notes"])
    assert results["groups"] == {"both": "First", "brightness": "Learn nothing", "top-hat": "Learn nothing"}


def test_what_is_done_is_not_done_again(place):
    before = {url: os.stat(url).st_mtime_ns for url in storage.listing(place)}
    run_recipe(Here(), RunRequest(RECIPE, HEALTHY, OTHERS), place)
    assert {url: os.stat(url).st_mtime_ns for url in storage.listing(place)} == before


def test_without_choices_every_diseased_patient_is_judged(tmp_path):
    data = Data("phantom", settings=("patients=30", "diseased=0.5", *SMALL))
    run_recipe(Here(), RunRequest(RECIPE, data, split="label-free"), str(tmp_path))
    exams = data.opened().exams()
    splits, with_mass = assign(exams), {e.exam_id for e in exams if any(lesion.kind == "mass" for lesion in e.lesions)}
    results = storage.read_json(f"{tmp_path}/report-label-free/results.json")
    assert {splits[exam] for exam in with_mass} == {"development", "test"}
    assert {row["images"] for row in results["rows"]} == {len(with_mass)}
    assert results["provenance"]["split"] == "label-free"
    assert results["notes"][0].startswith("Every diseased patient is judged")


def test_folds_judge_every_healthy_patient_by_detectors_that_did_not_know_it(tmp_path, capsys):
    data = Data("phantom", settings=("patients=60", "diseased=0.2", *SMALL))
    request = RunRequest(RECIPE, data, split="label-free", folds=2)
    page = run_recipe(Here(), request, str(tmp_path))
    assert "2 folds of " in capsys.readouterr().out
    exams = data.opened().exams()
    diseased = {exam.patient_id for exam in exams if exam.anomalous}
    tested: list[str] = []
    for fold in range(2):
        listed = ListOfImages(f"{tmp_path}/fold-{fold}").exams()
        tested += sorted({e.patient_id for e in listed if e.split == "test"} - diseased)
    assert sorted(tested) == sorted({exam.patient_id for exam in exams} - diseased)
    results = storage.read_json(f"{tmp_path}/report-label-free/results.json")
    assert {row["detector"] for row in results["cross_fit"]} == {"both", "brightness", "top-hat"}
    assert {row["healthy"] for row in results["cross_fit"]} == {len(tested)}
    assert all(0 <= row["exam_auc"]["value"] <= 1 for row in results["cross_fit"])
    assert all(row["p_holm"] >= row["p"] for row in results["cross_fit_comparisons"])
    assert "Against all healthy patients" in storage.read_bytes(page).decode()
    before = {url: os.stat(url).st_mtime_ns for url in storage.listing(str(tmp_path))}
    run_recipe(Here(), request, str(tmp_path))
    assert {url: os.stat(url).st_mtime_ns for url in storage.listing(str(tmp_path))} == before
    with pytest.raises(OptionError, match="no split for choices"):
        replace(request, split="development")
    with pytest.raises(OptionError, match="folds are 2 or more"):
        rehearse(replace(request, folds=1))
    with pytest.raises(OptionError, match=r"fold \d+ of 40 leaves no healthy patient for validation"):
        run_recipe(Here(), replace(request, folds=40, data=replace(data, shares=("validation=0.001",))), str(tmp_path))


def mixing(run: Run) -> list[Detector]:
    """The same autoencoder, learned from healthy patients and from diseased ones too."""
    healthy_only = Ingest(Preprocessing(spacing_mm=0.8), Sampling(patches=4))
    corpora = run.corpus(healthy_only), run.corpus(replace(healthy_only, mixed=1.0), "mixed")
    request = TrainRequest("cae", ("width=4", "latents=8"), Schedule(epochs=1))
    one, mixed = (run.train(corpus, request) for corpus in corpora)
    circuit = run.fit(corpora[0], one, DensityRequest(settings=("inputs=2", "replicas=2"), em=EM(epochs=1)))
    inherits = run.fit(corpora[0], mixed, DensityRequest(settings=("inputs=2", "replicas=2"), em=EM(epochs=1)), "other")
    table = [run.ask(one, "cae"), run.ask(circuit, "cae-spn"), run.ask(mixed, "mixed")]
    return [*table, run.ask(inherits, "mixed-spn"), run.combine("both", "fisher", [table[0], table[2]])]


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> str:
    data = Data("phantom", settings=("patients=48", "diseased=0.5", *SMALL))
    out = str(tmp_path_factory.mktemp("learned"))
    run_recipe(Here(), RunRequest(Recipe("mixing", mixing, kinds=("mass",), step_mm=6.4), data), out)
    return out


def test_diseased_patients_for_choices_can_be_mixed_into_a_corpus(learned):
    splits = assign(phantom.Dataset(patients=48, diseased=0.5).exams())
    sources = {}
    for name in ("corpus", "corpus-mixed"):
        index = Corpus.open(f"{learned}/{name}").index("exam_id", "split")
        sources[name] = {
            splits[exam] for exam, split in zip(index["exam_id"], index["split"], strict=True) if split == "train"
        }
    assert sources == {"corpus": {"train"}, "corpus-mixed": {"train", "development"}}


def test_rows_say_what_differs_from_what_was_published(learned):
    remarks = storage.read_json(f"{learned}/report/results.json")["remarks"]
    ours = "beside preset=paper: width=4 (32), latents=8 (64), padding=valid (same), learning_rate=0.001 (1e-05)"
    too = "learned from diseased patients too (100% of those for choices)"
    assert remarks == {
        "cae": ours,
        "cae-spn": f"{ours}, inputs=2 (45), replicas=2 (50)",
        "mixed": f"{ours}; {too}",
        "mixed-spn": f"{ours}, inputs=2 (45), replicas=2 (50); {too}",
        "both": too,
    }


def test_a_collapsed_model_and_what_is_made_of_it_say_so_in_their_rows(learned):
    trained = bundle.load(f"{learned}/detectors/cae-spn")
    collapsed = replace(trained, provenance=trained.provenance | {"collapsed": True})
    assert _remark(trained).endswith("replicas=2 (50)")
    assert _remark(collapsed).endswith("; its model has collapsed: its scores mean nothing")
    assert inherited(trained.provenance, collapsed.provenance)["collapsed"]
    assert not inherited(trained.provenance)["collapsed"]


def test_the_page_does_not_say_that_none_was_shown_a_lesion(learned, place):
    pages = [storage.read_bytes(f"{url}/report/index.html").decode() for url in (learned, place)]
    assert ["none was shown a real lesion, but those whose row says so." in page for page in pages] == [True, False]


def test_the_page_shows_what_models_and_circuits_draw(learned):
    results = storage.read_json(f"{learned}/report/results.json")
    strips = [name for name in results["figures"] if name.startswith("strip-")]
    sizes = {name: Image.open(f"{learned}/report/{name}.webp").size for name in strips}
    rows = {"strip-cae": 3, "strip-cae-spn": 1, "strip-mixed": 3, "strip-mixed-spn": 1}
    assert sizes == {name: (8 * 68, number * 68) for name, number in rows.items()}
    assert "healthy patches; their reconstructions" in results["captions"]["strip-mixed"]


@pytest.mark.parametrize("split", ["development", "label-free"])
@pytest.mark.parametrize("name", ["mixed", "mixed-spn", "both"])
def test_those_that_were_mixed_in_are_not_judged(learned, name, split):
    mixed = bundle.load(f"{learned}/detectors/{name}")
    with pytest.raises(OptionError, match=f"'{name}' learned from patients of the development split"):
        evaluate(Here(), [mixed], phantom.Dataset(), Evaluation("phantom", "", split, step_mm=6.4), learned)


def test_a_heading_promises_nothing_that_was_changed():
    assert RunRequest(RECIPE, HEALTHY, changes=Changes(rule="sd=2")).first == "First"
    assert RunRequest(RECIPE, HEALTHY, changes=Changes(epochs=1)).first == "First, but for what the notes say"
    assert RunRequest(replace(RECIPE, first=""), HEALTHY, changes=Changes(epochs=1)).first == ""


def test_what_is_other_than_the_recipe_says_is_a_sentence():
    assert Changes().sentence == ""
    changes = Changes(epochs=1, picture=("spacing_mm=0.8", "intensity=specks"), rule="sd=2")
    assert changes.sentence == (
        "Other than the recipe says: epochs=1, picture=spacing_mm=0.8,intensity=specks, rule=sd=2."
    )


def test_without_a_finding_there_is_no_report(place):
    no_kinds = replace(RECIPE, kinds=())
    assert run_recipe(Here(), RunRequest(no_kinds, HEALTHY), place) == ""
