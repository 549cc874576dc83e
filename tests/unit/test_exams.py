"""The list of a data set's images says what the data set says, without its files; pandas reads it as a table."""

import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rayad import catalog, storage
from rayad.datasets import exams, folder, phantom
from rayad.datasets.content import contents
from rayad.datasets.exam import Exam, Excluded, Lesion, listed, read_by
from rayad.datasets.splits import assign
from rayad.errors import FormatError
from rayad.imaging.plausibility import Doubt

TABLE = """image,patient,label,view,spacing_mm,kind,polygon
a.png,p,anomalous,MLO,0.4,mass,"1,1 1,5 5,5"
b.png,q,normal,CC,0.4,,
"""


@pytest.fixture
def source(tmp_path) -> Path:
    (tmp_path / "set").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / "set" / name)
    (tmp_path / "set/labels.csv").write_text(TABLE)
    return tmp_path / "set"


def test_a_list_says_what_the_data_set_says(source, tmp_path):
    dataset = folder.Dataset(str(source), patient_from="")
    again = exams.listed_once(dataset, str(tmp_path / "list"))
    assert listed(again) == listed(dataset)
    assert listed(exams.Dataset(str(tmp_path / "list/exams.parquet"))) == listed(dataset)
    assert contents(again, again.exams()) == contents(dataset, dataset.exams())
    assert read_by(again) == [str(tmp_path / "list"), str(source)]
    lesion = again.exams()[0].lesions[0]
    assert (again.lesion_mask(again.exams()[0], lesion) == dataset.lesion_mask(dataset.exams()[0], lesion)).all()


def test_every_field_of_an_exam_is_kept(tmp_path):
    lesions = (
        Lesion("mass", "CIRC", True, (1.5, 2.0, 3.25)),
        Lesion("calcification", malignant=False, mask_url="s3://masks/a.png"),
        Lesion("asymmetry", outline=((0.0, 1.0), (2.5, 3.0))),
    )
    doubts = (Doubt("padding", "A strip."), Doubt("depth", "12 of 16 bits."))
    wanted = [
        Exam("a", "p", "s3://a", True, "MLO", "L", "3", 0.07, lesions, "maker: model", doubts, "left"),
        Exam("b", "p", "s3://b", False, "", "", "", 0.05),
        Exam("ü-\udcff".encode(errors="replace").decode(), "q", "s3://c", None, "", "", "", 0.05),
    ]
    left_out = [Excluded("s3://d", "a specimen")]
    exams.write(phantom.Dataset(), wanted, assign(wanted), left_out, str(tmp_path))
    assert exams.Dataset(str(tmp_path)).listed() == (wanted, left_out)


def test_it_is_a_table_with_splits(tmp_path):
    dataset = phantom.Dataset(patients=20)
    exams.listed_once(dataset, str(tmp_path))
    table = pd.read_parquet(tmp_path / "exams.parquet")
    assert dict(zip(table.exam_id, table.split, strict=True)) == assign(dataset.exams())
    assert table.anomalous.tolist() == [exam.anomalous for exam in dataset.exams()]


def test_what_changed_is_not_seen_until_it_is_listed_again(source, tmp_path):
    before = exams.listed_once(folder.Dataset(str(source)), str(tmp_path / "list"))
    (source / "labels.csv").write_text(TABLE.replace("CC", "MLO"))
    assert [exam.view for exam in before.exams()] == ["MLO", "CC"]
    exams.listed_once(folder.Dataset(str(source)), str(tmp_path / "list"))
    assert [exam.view for exam in before.exams()] == ["MLO", "MLO"]


def test_a_list_that_says_the_same_is_not_touched(source, tmp_path):
    for _ in range(2):
        exams.listed_once(folder.Dataset(str(source)), str(tmp_path / "list"))
        os.utime(tmp_path / "list/exams.parquet", (1, 1))
    exams.listed_once(folder.Dataset(str(source)), str(tmp_path / "list"))
    assert (tmp_path / "list/exams.parquet").stat().st_mtime == 1


def test_listing_reads_no_file_again(source, tmp_path, monkeypatch):
    exams.listed_once(folder.Dataset(str(source)), str(tmp_path / "list"))
    read, read_bytes = [], storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda url, *more: read.append(url) or read_bytes(url, *more))
    monkeypatch.setattr(storage, "listing", None)
    catalog.configure("datasets", "exams", [f"source={tmp_path / 'list'}"]).exams()
    assert read == [str(tmp_path / "list/exams.parquet")]


class Own(phantom.Dataset):
    """The class of a library's user."""


@pytest.mark.parametrize("content", [None, b"no parquet", b"PAR1", "other table", "own"])
def test_what_is_no_list_is_said(tmp_path, content):
    url = tmp_path / "exams.parquet"
    if content == "own":
        exams.listed_once(Own(patients=4), str(tmp_path))
        assert len(exams.Dataset(str(tmp_path)).exams()) > 0
    elif content == "other table":
        pd.DataFrame({"exam_id": ["a"]}).to_parquet(url)
    elif content is not None:
        url.write_bytes(content)
    with pytest.raises(FormatError, match=rf"{url}: "):
        exams.Dataset(str(tmp_path)).listed_from  # noqa: B018, it is a property
    if content != "own":
        with pytest.raises(FormatError, match=rf"{url}: "):
            exams.Dataset(str(tmp_path)).exams()


def test_pixels_are_those_of_what_the_list_is_of_now(tmp_path):
    for seed in (1, 2):
        dataset = phantom.Dataset(patients=2, seed=seed, height=256, width=192)
        again = exams.listed_once(dataset, str(tmp_path))
        exam = again.exams()[0]
        assert (again.pixels(exam) == dataset.pixels(exam)).all()


def test_a_worker_has_the_data_set_without_the_list(tmp_path):
    again = exams.listed_once(phantom.Dataset(patients=2, height=256, width=192), str(tmp_path))
    assert again.listed_from == phantom.Dataset(patients=2, height=256, width=192)
    sent = pickle.dumps(again)
    (tmp_path / "exams.parquet").unlink()
    assert pickle.loads(sent).listed_from == again.listed_from


def test_a_name_in_no_encoding_is_left_out_and_told(source, tmp_path):
    with open(bytes(source / "b.png"), "rb") as file:
        pixels = file.read()
    for name in (b"\xe9.png", b"\xe8.txt"):
        with open(bytes(source) + b"/" + name, "wb") as file:
            file.write(pixels if name.endswith(b"png") else b"notes")
    (source / "labels.csv").unlink()
    dataset = folder.Dataset(str(source), spacing_mm=0.4, healthy=True)
    named, left_out = listed(dataset)
    assert [exam.exam_id for exam in named] == ["a", "b"]
    assert {exclusion.url.rsplit("/", 1)[1] for exclusion in left_out} == {r"\udce9.png", r"\udce8.txt"}
    assert listed(exams.listed_once(dataset, str(tmp_path / "list"))) == (named, left_out)
