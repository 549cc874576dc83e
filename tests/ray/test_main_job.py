"""The main job through the command line, small: ingest, train, density, calibration, evaluation, heatmap."""

import json
import os

import numpy as np
import pytest

from rayad import cli, recipes, storage
from rayad.datasets import folder, phantom
from rayad.on_ray.pool import OnRay
from rayad.pipeline.run import Changes, Data, RunRequest, run_recipe
from rayad.pool import Workers

PHANTOM = ["--dataset", "phantom", "--settings", "patients=30", "height=128", "width=96", "spacing_mm=0.8"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    """A folder in which the stages were run one after the other."""
    out = str(tmp_path_factory.mktemp("main"))
    stages = [
        ["ingest", *PHANTOM, "--out", f"{out}/corpus", "--sampling.patches", "20", "--picture", "spacing_mm=0.8"],
        [
            *("train", "--corpus", f"{out}/corpus", "--out", f"{out}/cae", "--schedule.epochs", "2"),
            *("--settings", "width=8", "--workers.number", "1"),
        ],
        [
            *("fit-density", "--detector", f"{out}/cae", "--corpus", f"{out}/corpus", "--out", f"{out}/cae-spn"),
            *("--em.epochs", "3", "--settings", "inputs=5", "replicas=5", "--workers.number", "1"),
        ],
        ["calibrate", "--detector", f"{out}/cae", f"{out}/cae-spn", *PHANTOM, "--scores", f"{out}/scores"],
        ["evaluate", "--detector", f"{out}/cae", f"{out}/cae-spn", *PHANTOM, "--out", f"{out}/report"],
    ]
    for stage in stages:
        assert cli.run(stage) == 0, stage
    return out


def test_the_report_has_a_row_for_each_detector_and_lesion(place):
    results = storage.read_json(f"{place}/report/results.json")
    rows = {(row["detector"], row["lesion"]) for row in results["rows"]}
    assert rows == {(d, k) for d in ("cae", "cae-spn") for k in ("mass", "calcification")}
    assert all(0 <= row["pixel_auc"]["value"] <= 1 for row in results["rows"])
    assert storage.exists(f"{place}/report/index.html")


def test_counts_of_workers_give_the_figures_of_the_report(place, tmp_path, capsys):
    detectors = ["--detector", f"{place}/cae", f"{place}/cae-spn"]
    assert cli.run(["evaluate", *detectors, *PHANTOM, "--out", str(tmp_path), "--streamed"]) == 0
    assert "AUROC" in capsys.readouterr().out
    found = {(row["detector"], row["lesion"]): row for row in storage.read_json(f"{tmp_path}/streamed.json")["rows"]}
    for row in storage.read_json(f"{place}/report/results.json")["rows"]:
        counted = found[row["detector"], row["lesion"]]
        assert counted["pixel_auc"]["value"] == pytest.approx(row["pixel_auc"]["value"], abs=1e-3)
        assert counted["pixel_ap"]["value"] == pytest.approx(row["pixel_ap"]["value"], abs=0.02)
        assert counted["best_dice"]["value"] == pytest.approx(row["best_dice"]["value"], abs=0.02)


@pytest.mark.long
def test_a_list_of_images_is_judged_as_what_was_listed(place, tmp_path, capfd):
    listed = ["--dataset", "exams", "--source", f"{place}/corpus"]
    assert cli.run(["evaluate", "--detector", f"{place}/cae", f"{place}/cae-spn", *listed, "--out", str(tmp_path)]) == 0
    ours, before = (storage.read_json(f"{where}/results.json") for where in (tmp_path, f"{place}/report"))
    assert ours["rows"] == before["rows"]
    assert ours["dataset"] == "phantom"
    assert "core_worker.cc" not in capfd.readouterr().err


def test_heatmaps_have_scores_and_p_values_and_failures_are_counted(place, tmp_path, capsys):
    dataset = phantom.Dataset(patients=30, height=128, width=96, spacing_mm=0.8)
    folder.export(dataset, dataset.exams()[:2], str(tmp_path / "new"))
    storage.write_bytes(str(tmp_path / "new/broken.png"), b"not a picture")
    arguments = ["--images", str(tmp_path / "new"), "--out", str(tmp_path / "maps"), "--spacing-mm", "0.8"]
    assert cli.run(["heatmap", "--detector", f"{place}/cae-spn", *arguments, "--counterfactual"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert sum("reason" in row for row in rows) == 1
    named = [row["name"] for row in rows if "name" in row]
    assert len(named) >= 2
    with np.load(tmp_path / f"maps/{named[0]}.npz") as heatmap:
        tissue = heatmap["tissue"]
        assert heatmap["scores"].dtype == np.float32
        assert np.array_equal(np.isfinite(heatmap["scores"]), tissue)
        assert ((heatmap["p_values"][tissue] > 0) & (heatmap["p_values"][tissue] <= 1)).all()
        assert len(heatmap["rows"]) == tissue.shape[0]
        assert heatmap["counterfactual"].dtype == heatmap["change"].dtype == np.float32
        assert heatmap["counterfactual"].shape == heatmap["change"].shape
    assert storage.read_bytes(str(tmp_path / f"maps/{named[0]}.png")).startswith(b"\x89PNG")


@pytest.mark.long
def test_a_recipe_that_is_done_does_nothing_again(tmp_path):
    settings = ("patients=30", "height=256", "width=192")
    changes = Changes(epochs=1, density_epochs=2)
    request = RunRequest(recipes.find("demo"), Data("phantom", settings=settings), changes=changes)
    report = run_recipe(OnRay(Workers(1)), request, str(tmp_path))
    before = {url: os.stat(url).st_mtime_ns for url in storage.listing(str(tmp_path))}
    assert run_recipe(OnRay(Workers(1)), request, str(tmp_path)) == report
    assert {url: os.stat(url).st_mtime_ns for url in storage.listing(str(tmp_path))} == before


@pytest.mark.parametrize(
    ("arguments", "code", "answer"),
    [
        (["run", "nothing", "--out", "x"], 2, "no recipe 'nothing'; rayad has ddsm, demo, "),
        (
            ["ingest", "--dataset", "nothing", "--out", "x"],
            2,
            "no dataset 'nothing'; rayad has cbis_ddsm, ddsm, dicom, exams, folder, ",
        ),
        (["train", "--corpus", "nowhere", "--out", "x", "--model", "nothing"], 2, "no model 'nothing'"),
        (["train", "--corpus", "nowhere", "--out", "x"], 1, "no patch corpus here"),
        (["train", "--corpus", "nowhere", "--out", "x", "--settings", "latent=3"], 2, "it has width, latents"),
        (
            ["heatmap", "--detector", "nowhere", "--images", "x", "--out", "x", "--spacing-mm", "1"],
            1,
            "no detector here",
        ),
        (["ingest", "--dataset", "mias", "--source", "nowhere", "--out", "x"], 1, "nowhere"),
    ],
)
def test_a_wrong_command_says_in_one_line_what_is_wanted(arguments, code, answer, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == code
    said = capsys.readouterr().err.strip()
    assert answer in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())
