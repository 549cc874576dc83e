"""CBIS-DDSM: the real tables and mammograms, and masks written here in both orders."""

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rayad.datasets import cbis_ddsm
from rayad.datasets.exam import Excluded, Images
from rayad.datasets.splits import assign
from rayad.errors import DatasetError
from tests.dicoms import mammogram, written

HEADER = (
    "patient_id,breast density,left or right breast,image view,abnormality id,abnormality type,mass shape,"
    "mass margins,assessment,pathology,subtlety,image file path,cropped image file path,ROI mask file path"
)


def row(kind: str, number: int, image: str, mask: str, crop: str, view: str = "CC", pathology: str = "BENIGN") -> str:
    paths = f'f/1.1/{image}/000000.dcm,f/1.1/{crop}/000001.dcm,"f/1.1/{mask}/000000.dcm\n"'
    return f"P_1,3,LEFT,{view},{number},{kind},OVAL,SPICULATED,4,{pathology},3,{paths}"


def write(folder: Path, name: str, series: str, pixels: np.ndarray) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(written(mammogram(pixels, SeriesInstanceUID=series, ImagerPixelSpacing=None)))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """One mammogram that has a mass and, in a copy, calcifications; masks come first or second in their series."""
    image = np.arange(80 * 60, dtype=np.uint16).reshape(80, 60)
    mass, specks, crop = np.zeros((80, 60), np.uint8), np.zeros((80, 60), np.uint8), image[20:40, 20:40].copy()
    mass[20:30, 20:40], specks[70:, 5:9] = 255, 255
    write(tmp_path, "a/1-1.dcm", "1.10", image)
    write(tmp_path, "b/1-1.dcm", "1.20", image)
    write(tmp_path, "a/roi/1-1.dcm", "1.11", mass)
    write(tmp_path, "a/roi/1-2.dcm", "1.11", crop)
    write(tmp_path, "b/roi/1-1.dcm", "1.21", crop)
    write(tmp_path, "b/roi/1-2.dcm", "1.21", specks)
    rows = [HEADER, row("mass", 1, "1.10", "1.11", "1.11")]
    (tmp_path / "mass_case_description_test_set.csv").write_text("\r\n".join(rows) + "\r\n", newline="")
    header = HEADER.replace("breast density", "breast_density").replace(
        "mass shape,mass margins", "calc type,calc distribution"
    )
    rows = [header, row("calcification", 1, "1.20", "1.21", "1.21", pathology="MALIGNANT")]
    rows.append(row("calcification", 1, "1.90", "1.91", "1.91", view="MLO"))
    (tmp_path / "calc_case_description_train_set.csv").write_text("\n".join(rows) + "\n", newline="")
    return tmp_path


def test_a_mammogram_is_an_exam_with_what_both_tables_say(made):
    dataset = cbis_ddsm.Dataset(str(made))
    assert isinstance(dataset, Images)
    (exam,) = dataset.exams()
    assert (exam.exam_id, exam.patient_id, exam.laterality, exam.view) == ("P_1-LEFT-CC", "P_1", "L", "CC")
    assert (exam.density, exam.anomalous, exam.spacing_mm) == ("3", True, 0.05)
    by_kind = {lesion.kind: lesion for lesion in exam.lesions}
    assert {kind: lesion.malignant for kind, lesion in by_kind.items()} == {"mass": False, "calcification": True}
    assert by_kind["calcification"].finding == "OVAL SPICULATED"
    assert dataset.pixels(exam).shape == (80, 60)
    assert dataset.excluded() == [Excluded("f/1.1/1.90/000000.dcm", "the image is not there")]


def test_the_mask_is_found_in_either_order(made):
    dataset = cbis_ddsm.Dataset(str(made))
    (exam,) = dataset.exams()
    masks = {lesion.kind: dataset.lesion_mask(exam, lesion) for lesion in exam.lesions}
    assert masks["mass"].sum() == 200
    assert masks["mass"][20:30, 20:40].all()
    assert masks["calcification"][70:, 5:9].all()
    assert masks["calcification"].sum() == 40


def test_lesions_are_selected_as_in_the_paper(made):
    dataset = cbis_ddsm.Dataset(str(made), lesions="paper")
    (exam,) = dataset.exams()
    assert [lesion.kind for lesion in exam.lesions] == ["mass"]
    assert Counter(found.reason for found in dataset.excluded()) == {
        "the image is not there": 1,
        "a calcification that touches the border": 1,
    }
    everything = cbis_ddsm.Dataset(str(made))
    exams, others = cbis_ddsm.selection(everything, everything.exams(), spacing_mm=0.005)  # 200 px become 20,000
    assert exams == []
    assert "a mass of the area of four patches or more" in [found.reason for found in others]


def test_what_is_wrong_is_said_in_one_sentence(made, tmp_path):
    with pytest.raises(DatasetError, match="tables of CBIS-DDSM expected"):
        cbis_ddsm.Dataset(str(made / "a")).exams()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no image of the 2 mammograms in the tables"):
        cbis_ddsm.Dataset(str(tmp_path / "empty"), tables=str(made)).exams()
    (made / "b/roi/1-2.dcm").write_bytes(b"nothing")
    dataset = cbis_ddsm.Dataset(str(made))
    (exam,) = dataset.exams()
    assert any("1-2.dcm: not a DICOM file" in found.reason for found in dataset.excluded())
    lost = next(lesion for lesion in exam.lesions if lesion.kind == "calcification")
    with pytest.raises(DatasetError, match="no mask of this calcification"):
        dataset.lesion_mask(exam, lost)
    write(made, "a/roi/1-1.dcm", "1.11", np.arange(80 * 60, dtype=np.uint16).reshape(80, 60))
    with pytest.raises(DatasetError, match="a mask of two values expected"):
        dataset.lesion_mask(exam, next(lesion for lesion in exam.lesions if lesion.kind == "mass"))
    table = made / "mass_case_description_test_set.csv"
    for wrong, message in (
        (HEADER.replace("pathology", "pathologie"), "no column pathology"),
        (
            HEADER + "\n" + row("mass", 1, "1.10", "1.11", "1.11").replace("LEFT", "MIDDLE"),
            "'MIDDLE' is not LEFT, RIGHT",
        ),
        (HEADER + "\na,b", "row 1 has not the 14 cells"),
        (HEADER + "\n" + row("mass", 1, "1.10/9", "1.11", "1.11"), "is not folder/study/series/file"),
    ):
        table.write_text(wrong, newline="")
        with pytest.raises(DatasetError, match=message):
            dataset.exams()


def test_the_real_tables_have_their_published_numbers(real_data):
    rows = cbis_ddsm.read_tables(str(real_data / "cbis-ddsm-metadata"))
    assert Counter(row["abnormality type"] for row in rows) == {"mass": 1696, "calcification": 1872}
    assert len({row["patient_id"] for row in rows}) == 1566
    assert Counter(row["pathology"] for row in rows) == {
        "MALIGNANT": 1457,
        "BENIGN": 1429,
        "BENIGN_WITHOUT_CALLBACK": 682,
    }
    with next((real_data / "cbis-ddsm-metadata").glob("calc*test*")).open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 326


def test_the_real_mammograms_are_joined_to_their_rows(real_data, tmp_path):
    shutil.copytree(real_data / "cbis-ddsm-dicom", tmp_path / "images")
    dataset = cbis_ddsm.Dataset(str(tmp_path / "images"), tables=str(real_data / "cbis-ddsm-metadata"))
    exams = {exam.exam_id: exam for exam in dataset.exams()}
    assert set(exams) == {"P_00173-LEFT-CC", "P_00820-RIGHT-CC"}
    benign, other = exams["P_00173-LEFT-CC"], exams["P_00820-RIGHT-CC"]
    assert [lesion.malignant for lesion in benign.lesions] == [False]
    assert (benign.laterality, benign.view, benign.lesions[0].kind) == ("L", "CC", "mass")
    assert [lesion.malignant for lesion in other.lesions] == [False]
    assert (other.laterality, other.view) == ("R", "CC")
    assert dataset.pixels(other).shape == (4688, 2592)
    assert set(assign(exams.values()).values()) <= {"development", "test"}
    assert Counter(found.reason for found in dataset.excluded()) == {"the image is not there": 3030}
