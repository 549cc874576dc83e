"""INbreast in the layout that it is handed out in, made here: the set itself needs its authors' leave."""

import plistlib
from pathlib import Path

import numpy as np
import pytest

from rayad.datasets import inbreast
from rayad.datasets.exam import Excluded, Images
from rayad.errors import DatasetError
from tests.dicoms import mammogram, written

HEADER = "Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads\n"
ROWS = "removed;removed;{};{};201001;{};{};{}\n"
PIXELS = np.arange(60 * 40, dtype=np.uint16).reshape(60, 40)


def regions(*found: tuple[str, list[str]]) -> bytes:
    """A property list as OsiriX writes it."""
    rois = [{"Name": name, "NumberOfPoints": len(points), "Point_px": points} for name, points in found]
    return plistlib.dumps({"Images": [{"ImageIndex": 0, "NumberOfROIs": len(rois), "ROIs": rois}]})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for folder in ("AllDICOMs", "AllXML"):
        (tmp_path / folder).mkdir()
    table = HEADER
    for number, name, side, view, density, reading in (
        (1001, "1001_aa01_MG_R_CC_ANON", "R", "CC", 2, "5"),
        (1002, "1002_aa01_MG_R_ML_ANON", "R", "MLO", 2, "4a"),
        (1003, "1003_bb02_MG_L_ML_ANON", "L", "MLO", 4, "1"),
        (1004, "1004_bb02_MG_L_CC_ANON", "L", "CC", 4, "2"),
    ):
        (tmp_path / "AllDICOMs" / f"{name}.dcm").write_bytes(written(mammogram(PIXELS, ImagerPixelSpacing=[0.07] * 2)))
        table += ROWS.format(side, view, number, density, reading)
    (tmp_path / "INbreast.csv").write_text(table + ROWS.format("R", "CC", 1009, 1, "1") + ";;;;;;;\n")
    square = ["(10.0, 20.0)", "(20.0, 20.0)", "(20.0, 30.0)", "(10.0, 30.0)"]
    found = [("Mass", square), ("Calcification", ["(5.2, 7.9)"]), ("Unnamed", ["(1, 1)"])]
    (tmp_path / "AllXML" / "1001.xml").write_bytes(regions(*found))
    outside = ["(35.0, 50.0)", "(45.0, 50.0)", "(45.0, 55.0)", "(35.0, 55.0)"]
    (tmp_path / "AllXML" / "1002.xml").write_bytes(regions(("Espiculated Region", outside)))
    return tmp_path


def test_images_regions_and_what_is_left_out(source: Path) -> None:
    dataset = inbreast.Dataset(str(source))
    assert isinstance(dataset, Images)
    exams, excluded = dataset.listed()
    assert [(e.exam_id, e.patient_id, e.laterality, e.view, e.density, e.anomalous) for e in exams] == [
        ("1001", "aa01", "R", "CC", "2", True),
        ("1002", "aa01", "R", "MLO", "2", True),
        ("1003", "bb02", "L", "MLO", "4", False),
        ("1004", "bb02", "L", "CC", "4", None),
    ]
    assert [(lesion.kind, lesion.finding) for lesion in exams[0].lesions] == [
        ("mass", "Mass"),
        ("calcification", "Calcification"),
    ]
    assert exams[0].spacing_mm == pytest.approx(0.07)
    reasons = {of.reason for of in excluded}
    assert reasons == {"region of no known kind: Unnamed", "a row without an image"}
    assert Excluded("INbreast.csv: 1009", "a row without an image") in excluded
    np.testing.assert_allclose(dataset.pixels(exams[0]), PIXELS / 65535, atol=1e-7)


def test_outlines_are_columns_and_rows_with_what_they_enclose(source: Path) -> None:
    dataset = inbreast.Dataset(str(source))
    first, second = dataset.exams()[:2]
    mass, speck = (dataset.lesion_mask(first, lesion) for lesion in first.lesions)
    expected = np.zeros((60, 40), bool)
    expected[20:31, 10:21] = True
    np.testing.assert_array_equal(mass, expected)
    assert np.argwhere(speck).tolist() == [[8, 5]]
    beyond = dataset.lesion_mask(second, second.lesions[0])
    assert beyond[50:56, 35:].all()
    assert beyond.sum() == 6 * 5


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("INbreast.csv", b"File Name,ACR\n", "no column ACR, Bi-Rads, File Name"),
        ("INbreast.csv", (HEADER + "a;b\n").encode(), "row 1 has not the 8 cells"),
        ("INbreast.csv", HEADER.encode(), "no row of INbreast.csv is of this file"),
        ("AllDICOMs/somewhat.dcm", b"", "its name is not one of INbreast's"),
    ],
)
def test_what_is_not_inbreast_says_so(source: Path, file: str, content: bytes, message: str) -> None:
    (source / file).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        inbreast.Dataset(str(source)).exams()


@pytest.mark.parametrize("content", [b"", b"<plist>", regions(("Mass", [])), regions(("Mass", ["1, 2"]))])
def test_an_image_whose_regions_cannot_be_read_is_left_out(source: Path, content: bytes) -> None:
    (source / "AllXML" / "1002.xml").write_bytes(content)
    exams, excluded = inbreast.Dataset(str(source)).listed()
    assert [exam.exam_id for exam in exams] == ["1001", "1003", "1004"]
    assert any(of.reason.endswith("Error") or "InvalidFile" in of.reason for of in excluded)
