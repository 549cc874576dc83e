"""The page of a data set: failures, copies of images, and what forbids to learn from it."""

import shutil

import numpy as np
import pytest
from PIL import Image

from rayad import storage
from rayad.datasets import folder, phantom
from rayad.datasets.splits import assign
from rayad.evaluation import inspection
from rayad.imaging.mammogram import Preprocessing
from rayad.pipeline.inspect import inspect
from rayad.pool import Here


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


def inspected(dataset: folder.Dataset, out: str, sheet: int = 10) -> tuple[str, list[str]]:
    return inspect(Here(), "folder", dataset.source, dataset, Preprocessing(), out, sheet)


def test_copies_across_splits_forbid_to_learn(images, tmp_path):
    page_url, problems = inspected(folder.Dataset(images), str(tmp_path))
    assert len(problems) == 1
    assert "1 pairs of images look the same and stand in two splits" in problems[0]
    summary = storage.read_json(f"{tmp_path}/inspection.json")
    assert [twin["across"] for twin in summary["twins"]].count(True) == 1
    assert sum(row["count"] for row in summary["failures"]) == 1
    assert "damaged" in summary["failures"][0]["reason"]
    assert summary["looked_at"] == sum(split["images"] for split in summary["counts"].values())
    assert set(summary["counts"]) == {"train", "validation", "calibration", "development", "test"}
    for shares in summary["intensities"].values():
        assert sum(shares) == pytest.approx(1)
    page = storage.read_bytes(page_url).decode()
    assert page.count("<img ") == 10
    assert "Do not learn from this" in page


def test_an_image_that_has_nothing_to_show_is_no_page(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "images/a.png")
    page_url, problems = inspected(folder.Dataset(str(tmp_path / "images"), spacing_mm=0.2), str(tmp_path / "page"))
    assert problems == []
    summary = storage.read_json(f"{tmp_path}/page/inspection.json")
    assert (summary["looked_at"], sum(row["count"] for row in summary["failures"])) == (1, 1)
    assert storage.read_bytes(page_url).decode().count("<img ") == 0


def test_of_very_many_copies_the_page_shows_those_across_splits_first(tmp_path):
    pair = {"bits": 0, "rho": 1.0, "splits": "train and train", "across": False}
    number = inspection.MOST_TWINS + 7
    twins = [pair | {"a": f"a{i}", "b": f"b{i}"} for i in range(number - 1)]
    twins.append(pair | {"a": "judged", "b": "learned", "across": True})
    summary = {"dataset": "folder", "source": "images", "counts": {}, "facts": {}, "excluded": [], "failures": []}
    summary |= {
        "doubtful": [],
        "looked_at": 2 * number,
        "twins": twins,
        "intensities": {},
        "corpus": "",
        "problems": [],
    }
    page = storage.read_bytes(inspection.build(summary, [], str(tmp_path))).decode()
    assert page.count("(across)") == 1
    assert page.index("judged") < page.index('<td class="name">a0</td>')
    assert page.count("<td>1.000</td>") == inspection.MOST_TWINS
    assert "And 7 more pairs" in page
    assert len(storage.read_json(str(tmp_path / "inspection.json"))["twins"]) == number
