"""A benchmark of every kind of detector, small: two seeds, restarted, and its page made again."""

import os
import shutil
from dataclasses import replace

import pytest

from rayad import cli, storage
from rayad.datasets import folder, phantom
from rayad.density.em import EM
from rayad.fit import Schedule
from rayad.imaging.mammogram import Preprocessing
from rayad.patches.corpus import Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.run import Data, Recipe, Run, RunRequest, rehearse, run_recipe
from rayad.pool import Here
from rayad.scoring import bundle
from rayad.scoring.detector import Detector

DATA = Data("phantom", settings=("patients=40", "height=256", "width=192"))
SPN = ("inputs=3", "replicas=3")
CODES = ("width=8", "codes=8", "embedding=16", "blocks=1", "padding=valid", "book=ema")


def small(run: Run) -> list[Detector]:
    corpus = run.corpus(Ingest(Preprocessing(intensity="relative"), Sampling(patches=12), shard_patches=1024))

    def learns(model: str, *settings: str, epochs: int = 2) -> TrainRequest:
        return TrainRequest(model, settings, Schedule(epochs=epochs, patience=3, batch=8))

    cae = run.train(corpus, learns("cae", "width=4", "latents=8"))
    codes = run.train(corpus, learns("vqvae", *CODES, epochs=20), "codes")
    em = EM(epochs=2)
    spn = run.ask(run.fit(corpus, cae, DensityRequest(settings=SPN, em=em)), "cae-spn")
    context = DensityRequest(settings=SPN, context=("skin_mm", "rel_row", "image_density"), em=em)
    background = run.fit(corpus, cae, DensityRequest(settings=SPN, smooth=True, em=em), "background")
    background = run.ask(background, "cae-background")
    floor = run.floor(corpus, "relative-brightness")
    return [
        floor,
        run.ask(cae, "cae"),
        run.ask(cae, "cae-ssim", "ssim"),
        spn,
        run.ask(run.fit(corpus, cae, context, "context"), "cae-context"),
        background,
        run.ask(run.fit(corpus, cae, DensityRequest("local_outlier_factor", ("neighbours=5",)), "lof"), "cae-lof"),
        run.ask(run.fit(corpus, codes, DensityRequest(settings=SPN, em=em)), "codes-spn"),
        run.ask(run.train(corpus, learns("conditional_vae", "width=4", "latents=8", "beta=1e-7")), "conditional"),
        run.ask(run.train(corpus, learns("pca", "components=8", "side=16")), "pca"),
        run.combine("ratio", "difference", [spn, background]),
        run.combine("both", "fisher", [spn, floor]),
    ]


RECIPE = Recipe("small", small, kinds=("mass", "calcification"), order=("pca", "both"), first="First", dense=("D",))
SEEDS = RunRequest(RECIPE, DATA, seeds=2)


pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("benchmark"))
    run_recipe(Here(), SEEDS, out)
    return out


def test_every_detector_has_its_rows_in_the_order_that_the_recipe_wants(place):
    results = storage.read_json(f"{place}/report/results.json")
    names = list(dict.fromkeys(row["detector"] for row in results["rows"]))
    assert names[:2] == ["pca", "both"]
    assert set(names) == {detector.name for detector in rehearse(SEEDS)}
    assert {row["detector"] for row in results["rows"] if row["pixel_auc"]["value"] is None} == set()
    assert set(results["costs"]) == set(results["row_provenance"]) == set(names)
    assert all(of["score_seconds"] > 0 for of in results["costs"].values())
    assert results["costs"]["cae-spn"]["train_minutes"] > results["costs"]["cae"]["train_minutes"] > 0
    assert all(of["machine"] and of["corpus"] for of in results["row_provenance"].values())
    assert {row["group"] for row in results["group_rows"]} == {"dense", "not dense"}
    assert set(results["ranks"]) == {"mass", "calcification"}


def test_seeds_differ_where_something_is_learned(place):
    results = storage.read_json(f"{place}/report/results.json")
    by = {(row["detector"], row["lesion"]): row for row in results["seeds"]}
    assert by["cae", "mass"]["seeds"] == by["both", "mass"]["seeds"] == 2
    assert by["cae", "mass"]["pixel_auc"]["std"] > 0
    assert by["relative-brightness", "mass"]["seeds"] == 1
    # a pass leaves out the last patches that fill no batch, and which these are depends on the seed
    assert by["pca", "mass"]["pixel_auc"]["std"] < 0.01


def test_a_benchmark_that_is_done_does_nothing_again(place):
    before = {url: os.stat(url).st_mtime_ns for url in storage.listing(place)}
    run_recipe(Here(), SEEDS, place)
    assert {url: os.stat(url).st_mtime_ns for url in storage.listing(place)} == before


def test_another_number_of_seeds_is_another_report(place, tmp_path):
    shutil.copytree(place, tmp_path / "copy")
    run_recipe(Here(), replace(SEEDS, seeds=1), str(tmp_path / "copy"))
    assert storage.read_json(f"{tmp_path}/copy/report/results.json")["seeds"] == []


def test_bundles_of_every_kind_are_whole_and_hold_no_pickle(place, capsys):
    urls = [f"{place}/detectors/{name}" for name in ("cae-lof", "codes-spn", "cae-context", "both", "conditional")]
    assert cli.run(["check", "--detector", *urls]) == 0, capsys.readouterr().err
    kinds = {file.rsplit(".", 1)[1] for url in urls for file in storage.listing(url)}
    assert kinds == {"json", "safetensors"}
    assert bundle.load(urls[3]).members[1].name == "relative-brightness"


def test_heatmaps_of_a_combined_detector_and_of_one_in_context(place, tmp_path):

    dataset = phantom.Dataset(patients=2, height=256, width=192)
    folder.export(dataset, dataset.exams()[:1], str(tmp_path / "new"))
    for name in ("both", "cae-context", "codes-spn", "conditional"):
        arguments = ["--images", str(tmp_path / "new"), "--out", str(tmp_path / name), "--spacing-mm", "0.4"]
        assert cli.run(["heatmap", "--detector", f"{place}/detectors/{name}", *arguments]) == 0
        assert len(storage.listing(str(tmp_path / name))) == 3  # the arrays, the picture, and the rows


def test_the_page_can_be_made_again_and_detectors_asked_and_combined_by_command(place, tmp_path, capsys):
    assert cli.run(["report", "--results", f"{place}/report"]) == 0
    cae = f"{place}/detectors/cae"
    asked = ["rescore", "--detector", cae, "--out", str(tmp_path / "max"), "--name", "max", "--score", "maximum"]
    assert cli.run(asked) == 0
    assert bundle.load(str(tmp_path / "max")).score.name == "maximum"
    assert cli.run([*asked[:-1], "brilliance"]) == 2
    assert "no score 'brilliance'" in capsys.readouterr().err
    dataset = ["--dataset", "phantom", "--settings", "patients=40", "height=256", "width=192"]
    members = [cae, f"{place}/detectors/cae-spn"]
    combine = ["combine", "--detector", *members, "--out", str(tmp_path / "mean"), "--name", "mean", "--rule", "mean"]
    assert cli.run([*combine, *dataset, "--scores", str(tmp_path / "scores")]) == 0
    assert [m.name for m in bundle.load(str(tmp_path / "mean")).members] == ["cae", "cae-spn"]
