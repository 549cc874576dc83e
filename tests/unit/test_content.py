"""A hash of all that an exam is made of: any change of it changes the hash, and nothing else does."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayad import storage
from rayad.datasets import folder, phantom
from rayad.datasets.content import contents, file_name

TABLE = """image,patient,label,view,spacing_mm,kind,mask
a.png,p,anomalous,MLO,0.4,mass,masks/a.png
b.png,q,normal,CC,0.4,,
"""


@pytest.fixture
def source(tmp_path) -> Path:
    (tmp_path / "set/masks").mkdir(parents=True)
    for name in ("a", "b", "masks/a"):
        Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / f"set/{name}.png")
    (tmp_path / "set/labels.csv").write_text(TABLE)
    return tmp_path / "set"


def of(source: Path, **settings) -> dict[str, str]:
    dataset = folder.Dataset(str(source), **settings)
    return contents(dataset, dataset.exams())


def pixels(name: str):
    def change(source: Path) -> None:
        before = (source / name).stat()
        Image.fromarray(np.full((8, 8), 201, np.uint8)).save(source / name)
        assert (source / name).stat().st_size == before.st_size

    return change


def table(old: str, new: str):
    return lambda source: (source / "labels.csv").write_text(TABLE.replace(old, new))


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda source: None, set()),
        (pixels("a.png"), {"a"}),
        (pixels("masks/a.png"), {"a"}),
        (table("p,anomalous", "r,anomalous"), {"a"}),
        (table("MLO,0.4", "MLO,0.2"), {"a"}),
        (table("CC", "MLO"), {"b"}),
        (table("mass", "calcification"), {"a"}),
        (table("q,normal", "q,"), {"b"}),
        (lambda source: (source / "a.png").write_bytes((source / "a.png").read_bytes() + b"0"), {"a"}),
        (lambda source: os.utime(source / "b.png", (1, 1)), {"b"}),
    ],
)
def test_what_changes_an_exam_changes_its_hash(source, change, changed):
    before = of(source)
    change(source)
    after = of(source)
    assert {name for name in before if before[name] != after[name]} == changed


def test_settings_of_the_data_set_belong_to_it(source):
    assert of(source) != of(source, healthy=True)
    one, other = phantom.Dataset(patients=3), phantom.Dataset(patients=3, seed=1)
    exams = one.exams()[:1]
    assert contents(one, exams) != contents(other, exams)
    assert contents(one, exams) == contents(phantom.Dataset(patients=4), exams)


def test_versions_of_objects_are_those_of_their_content(tmp_path):
    urls = [f"memory://{tmp_path.name}/in/a/x.png", f"memory://{tmp_path.name}/in/b/y.png"]
    for url in urls:
        storage.write_bytes(url, b"1")
    web = "http://127.0.0.1:1/dicom-web/studies/1/series/2/instances/3"
    before = storage.versions([*urls, web, f"memory://{tmp_path.name}/in/none.png", "phantom:1-L", "/no/such/file"])
    assert [url for url in before if before[url]] == urls
    storage.write_bytes(urls[0], b"2")
    after = storage.versions(urls)
    assert after[urls[0]] != before[urls[0]]
    assert after[urls[1]] == before[urls[1]]


@pytest.mark.parametrize("name", ["a", "mdb001", "Mass-Training_P_00001", "1.2.840.10008", "a b"])
def test_ordinary_ids_are_names_of_files(name):
    assert file_name(name) == name


def test_no_two_ids_are_one_file(tmp_path):
    names = ["a/b", "a_b", "a\\b", "a:b", "..", ".", "", "x" * 300, "x" * 301, "\udcff", "a\n"]
    for name in names:
        (tmp_path / f"{file_name(name)}.npz").write_bytes(b"")
    assert len(list(tmp_path.iterdir())) == len(names)


def test_a_part_of_a_file_changes_with_it_and_a_name_may_have_a_hash(tmp_path):
    (tmp_path / "a#1.png").write_bytes(b"1")
    (tmp_path / "a").write_bytes(b"1")
    exams = [replace(phantom.Dataset().exams()[0], url=str(tmp_path / name)) for name in ("a#1.png", "a#2")]
    for file, changed in (("a#1.png", [True, False]), ("a", [True, True])):  # the first could be a part of a, too
        before = [contents(phantom.Dataset(), [exam]) for exam in exams]
        os.utime(tmp_path / file, (1, 1))
        assert [contents(phantom.Dataset(), [exam]) != was for exam, was in zip(exams, before, strict=True)] == changed
