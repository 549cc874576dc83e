"""A benchmark of every kind of detector, small: two seeds, restarted, and its page made again."""

import os
import shutil
from dataclasses import replace

import pytest

from rayad import cli, recipes, storage
from rayad.datasets import folder, phantom
from rayad.patches.sample import Sampling
from rayad.pipeline.run import run_recipe
from rayad.pool import Here
from rayad.recipes import Combined, Density, Model, Recipe, Row
from rayad.scoring import bundle


def small() -> Recipe:
    demo = recipes.find("demo")
    line = replace(
        demo.lines[0],
        ingest=replace(demo.lines[0].ingest, sampling=Sampling(patches=12)),
        floors={"relative-brightness": demo.lines[0].floors["relative-brightness"]},
        models={
            "cae": Model({"width": 4, "latents": 8}),
            "codes": Model(
                {"width": 8, "codes": 8, "embedding": 16, "blocks": 1, "padding": "valid", "book": "ema"},
                name="vqvae",
                epochs=20,
            ),
            "conditional_vae": Model({"width": 4, "latents": 8, "beta": 1e-7}),
            "pca": Model({"components": 8, "side": 16}),
        },
        densities={
            "spn": Density({"inputs": 3, "replicas": 3}),
            "context": Density({"inputs": 3, "replicas": 3}, context=("skin_mm", "rel_row", "image_density")),
            "background": Density({"inputs": 3, "replicas": 3}, smooth=True),
            "lof": Density({"neighbours": 5}, name="local_outlier_factor"),
        },
        rows={
            "cae": Row("cae"),
            "cae-ssim": Row("cae", "ssim"),
            "cae-spn": Row("cae", "likelihood", "spn"),
            "cae-context": Row("cae", "context", "context"),
            "cae-background": Row("cae", "likelihood", "background"),
            "cae-lof": Row("cae", "novelty", "lof"),
            "codes-spn": Row("codes", "likelihood", "spn"),
            "conditional": Row("conditional_vae", "elbo"),
            "pca": Row("pca"),
        },
        schedule=replace(demo.lines[0].schedule, epochs=2, batch=8),
        em=replace(demo.lines[0].em, epochs=2),
    )
    return replace(
        demo,
        lines=(line,),
        dataset_fields={"patients": 40, "height": 256, "width": 192},
        combined={
            "ratio": Combined("difference", ("cae-spn", "cae-background")),
            "both": Combined("fisher", ("cae-spn", "relative-brightness")),
        },
        order=("pca", "both"),
        dense=("D",),
    )


pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("benchmark"))
    run_recipe(Here(), small(), "", out, seeds=2)
    return out


def test_every_detector_has_its_rows_in_the_order_that_the_recipe_wants(place):
    results = storage.read_json(f"{place}/report/results.json")
    names = list(dict.fromkeys(row["detector"] for row in results["rows"]))
    assert names[:2] == ["pca", "both"]
    assert set(names) == {*small().lines[0].rows, *small().lines[0].floors, *small().combined}
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
    run_recipe(Here(), small(), "", place, seeds=2)
    assert {url: os.stat(url).st_mtime_ns for url in storage.listing(place)} == before


def test_another_number_of_seeds_is_another_report(place, tmp_path):
    shutil.copytree(place, tmp_path / "copy")
    run_recipe(Here(), small(), "", str(tmp_path / "copy"), seeds=1)
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
