"""The page of a data set on a real Ray: failures, copies, and corpora that one must not learn from."""

import shutil

import numpy as np
import pytest
from PIL import Image

from rayad import cli, storage
from rayad.datasets import folder, phantom
from rayad.datasets.splits import assign
from rayad.patches.corpus import Corpus


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    """Phantoms as files: one is a copy of another patient's, across splits; one is damaged."""
    where = str(tmp_path_factory.mktemp("inspected") / "images")
    dataset = phantom.Dataset(patients=24, height=256, width=192)
    exams = dataset.exams()
    folder.export(dataset, exams, where)
    splits = assign(exams)
    learned = next(exam.exam_id for exam in exams if splits[exam.exam_id] == "train")
    judged = next(exam.exam_id for exam in exams if splits[exam.exam_id] == "test" and exam.anomalous is False)
    shutil.copy(f"{where}/{learned}.png", f"{where}/{judged}.png")
    other = next(exam.exam_id for exam in exams if splits[exam.exam_id] == "validation")
    with open(f"{where}/{other}.png", "r+b") as file:
        file.truncate(200)
    return where


def inspected(images: str, out: str, *more: str) -> int:
    return cli.run(["inspect", "--dataset", "folder", "--source", images, "--out", out, "--sheet", "10", *more])


def test_copies_across_splits_forbid_to_learn(images, tmp_path, capsys):
    assert inspected(images, str(tmp_path)) == 1
    assert "look the same and stand in two splits" in capsys.readouterr().err
    found = storage.read_json(f"{tmp_path}/inspection.json")
    assert [twin["across"] for twin in found["twins"]].count(True) == 1
    assert sum(row["count"] for row in found["failures"]) == 1
    assert "damaged" in found["failures"][0]["reason"]
    assert found["looked_at"] == sum(of["images"] for of in found["counts"].values())
    assert set(found["counts"]) == {"train", "validation", "calibration", "development", "test"}
    for shares in found["intensities"].values():
        assert sum(shares) == pytest.approx(1)
    page = storage.read_bytes(f"{tmp_path}/index.html").decode()
    assert page.count("<img ") == 10
    assert "Do not learn from this" in page


def test_a_corpus_with_a_patient_in_two_splits_is_refused(images, tmp_path, capsys):
    corpus, out = str(tmp_path / "corpus"), str(tmp_path / "page")
    ingest = ["ingest", "--dataset", "folder", "--source", images, "--out", corpus, "--max-failures", "0.2"]
    assert cli.run([*ingest, "--sampling.patches", "4"]) == 0
    index_url = f"{corpus}/index.parquet"
    index = Corpus.open(corpus).index()
    index.loc[index.index[-1], "patient_id"] = index["patient_id"].iloc[0]
    index.to_parquet(index_url, index=False)
    assert inspected(images, out, "--corpus", corpus) == 1
    assert "1 patients stand in two splits" in capsys.readouterr().err
    assert cli.run(["train", "--corpus", corpus, "--out", str(tmp_path / "cae")]) == 1
    assert "1 patients stand in two splits" in capsys.readouterr().err


def test_an_image_that_has_nothing_to_show_is_no_page(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "images/a.png")
    assert inspected(str(tmp_path / "images"), str(tmp_path / "page"), "--settings", "spacing_mm=0.2") == 0
    assert "1" in storage.read_bytes(f"{tmp_path}/page/index.html").decode()
