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
    (tmp_path / "calc_case_description_test_set.csv").write_text("\n".join(rows) + "\n", newline="")
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
    assert exam.part == "test"
    assert dataset.excluded() == [
        Excluded(str(made / "b/roi/1-2.dcm"), "the table calls this mask the cut-out; it is taken for what it is"),
        Excluded("f/1.1/1.90/000000.dcm", "the image is not there"),
    ]


def test_the_mask_is_found_in_either_order(made):
    dataset = cbis_ddsm.Dataset(str(made))
    (exam,) = dataset.exams()
    masks = {lesion.kind: dataset.lesion_mask(exam, lesion) for lesion in exam.lesions}
    assert masks["mass"].sum() == 200
    assert masks["mass"][20:30, 20:40].all()
    assert masks["calcification"][70:, 5:9].all()
    assert masks["calcification"].sum() == 40


def test_what_a_training_table_says_of_a_test_image_is_other(made):
    table = made / "calc_case_description_test_set.csv"
    table.rename(table.with_name("calc_case_description_train_set.csv"))
    (exam,) = cbis_ddsm.Dataset(str(made)).exams()
    assert exam.part == "test"
    assert [(lesion.kind, lesion.finding, lesion.located) for lesion in exam.lesions] == [
        ("other", "OVAL SPICULATED", True),
        ("mass", "OVAL SPICULATED", True),
    ]
    (made / "mass_case_description_test_set.csv").unlink()
    (exam,) = cbis_ddsm.Dataset(str(made)).exams()
    assert (exam.part, [lesion.kind for lesion in exam.lesions]) == ("train", ["calcification"])
    table.with_name("calc_case_description_train_set.csv").rename(table.with_name("calc_case_description_all.csv"))
    with pytest.raises(DatasetError, match=r"called .*train_set.csv or .*test_set.csv"):
        cbis_ddsm.Dataset(str(made)).exams()


@pytest.mark.parametrize(
    ("mask", "image", "is_scaled"),
    [  # of real files (github.com/fjeg/ddsm_tools, issue 5), and a cut-out of an image's own shape
        ((4386, 1789), (5041, 2056), True),
        ((5026, 2476), (4373, 2155), True),
        ((4686, 2820), (5386, 3241), True),
        ((4621, 2781), (5311, 3196), True),
        ((5386, 3661), (4686, 3186), True),
        ((4688, 3088), (4624, 3056), False),
        ((4624, 3080), (4640, 3072), False),
        ((469, 259), (4688, 2592), False),
    ],
)
def test_masks_of_real_sizes(mask, image, is_scaled):
    assert cbis_ddsm.scaled(mask, image) == is_scaled


def test_a_mask_of_another_size_is_resampled_where_its_shape_is_the_images(made):
    mask = np.zeros((160, 120), np.uint8)
    mask[40:60, 40:80] = 255
    write(made, "a/roi/1-1.dcm", "1.11", mask)
    dataset = cbis_ddsm.Dataset(str(made))
    (exam,) = dataset.exams()
    expected = np.zeros((80, 60), bool)
    expected[20:30, 20:40] = True
    mass = next(lesion for lesion in exam.lesions if lesion.kind == "mass")
    np.testing.assert_array_equal(dataset.lesion_mask(exam, mass), expected)
    write(made, "a/roi/1-1.dcm", "1.11", mask[:, :100])
    with pytest.raises(DatasetError, match=r"mask of \(160, 100\) px for .* of \(80, 60\) px"):
        dataset.lesion_mask(exam, mass)
    exams, excluded = dataset.listed()
    assert not next(lesion for lesion in exams[0].lesions if lesion.kind == "mass").located
    reason = "no mask of the image's shape: (80, 60) px wanted, the largest file has (160, 100)"
    assert Excluded("f/1.1/1.11/000000.dcm", reason) in excluded


def test_of_two_files_of_the_images_size_the_table_says_which_is_the_mask(made):
    write(made, "a/roi/1-2.dcm", "1.11", np.arange(80 * 60, dtype=np.uint16).reshape(80, 60))
    dataset = cbis_ddsm.Dataset(str(made))
    (exam,) = dataset.exams()
    mass = next(lesion for lesion in exam.lesions if lesion.kind == "mass")
    assert dataset.lesion_mask(exam, mass).sum() == 200
    (made / "a/roi/1-1.dcm").rename(made / "a/roi/x.dcm")
    exams, excluded = dataset.listed()
    assert not next(lesion for lesion in exams[0].lesions if lesion.kind == "mass").located
    assert "one mask expected, 2 files have the image's shape" in {found.reason for found in excluded}


def test_a_mammogram_that_a_folder_and_the_table_call_otherwise_is_left_out(made):
    table = made / "calc_case_description_test_set.csv"
    rows = table.read_text()
    table.write_text(rows.replace("f/1.1/1.20", "Calc-Test_P_1_LEFT_CC/1.1/1.20"))
    assert len(cbis_ddsm.Dataset(str(made)).exams()) == 1
    table.write_text(rows.replace("f/1.1/1.90", "Calc-Test_P_1_LEFT_CC/1.1/1.90"))
    (made / "others").mkdir()
    write(made, "others/1.dcm", "1.30", np.zeros((80, 60), np.uint16))
    (made / "mass_case_description_train_set.csv").write_text(
        "\n".join([HEADER, row("mass", 1, "1.30", "1.31", "1.31").replace("P_1,", "P_2,")]) + "\n", newline=""
    )
    exams, excluded = cbis_ddsm.Dataset(str(made)).listed()
    assert [exam.patient_id for exam in exams] == ["P_2"]
    reasons = Counter(found.reason for found in excluded)
    assert reasons["the table says P_1_LEFT_MLO, the path P_1_LEFT_CC"] == 1
    assert reasons["a row of the tables may be of this mammogram"] == 2


def test_a_file_whose_patient_is_another_is_not_taken(made):
    file = mammogram(np.zeros((80, 60), np.uint16), SeriesInstanceUID="1.10", PatientID="Mass-Test_P_1_RIGHT_CC")
    (made / "a/1-1.dcm").write_bytes(written(file))
    exams, excluded = cbis_ddsm.Dataset(str(made)).listed()
    assert [exam.url for exam in exams] == [str(made / "b/1-1.dcm")]
    reason = "its PatientID is that of another mammogram than the tables say"
    assert Excluded(str(made / "a/1-1.dcm"), reason) in excluded


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
    reasons = Counter(found.reason for found in dataset.excluded())
    assert reasons == {"the image is not there": 3030, "its mask is not there": 2}


def test_the_test_part_of_the_real_tables(real_data):
    """The published test sets have 361 mammograms with a mass and 284 with calcifications."""
    mammograms: dict[cbis_ddsm.Mammogram, list[cbis_ddsm.Row]] = {}
    rows = cbis_ddsm.read_tables(str(real_data / "cbis-ddsm-metadata"))
    for of_image in rows:
        mammograms.setdefault(cbis_ddsm.mammogram_of(of_image), []).append(of_image)
    parts = {mammogram: cbis_ddsm.part_of(own_rows) for mammogram, own_rows in mammograms.items()}
    kinds = {m: {cbis_ddsm.kind_of(r, parts[m]) for r in own_rows} for m, own_rows in mammograms.items()}
    in_test = Counter(kind for mammogram, found in kinds.items() if parts[mammogram] == "test" for kind in found)
    assert in_test == {"mass": 361, "calcification": 284, "other": 29}
    assert not any("other" in found for mammogram, found in kinds.items() if parts[mammogram] == "train")
    assert (len(mammograms), list(parts.values()).count("test")) == (3032, 641)
    in_tables = {part: {r["patient_id"] for r in rows if r["part"] == part} for part in ("train", "test")}
    assert len(in_tables["train"] & in_tables["test"]) == 31
    in_parts = {part: {m[0] for m in parts if parts[m] == part} for part in ("train", "test")}
    assert len(in_parts["train"] & in_parts["test"]) == 22  # of the other nine every mammogram is in a test table
