"""mini-MIAS: a small copy of the folder's shape, with all of Info.txt's ways of writing."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayad import storage
from rayad.datasets import splits
from rayad.datasets.exam import Exam
from rayad.datasets.mias import Dataset
from rayad.errors import DatasetError, StorageError

INFO = """              MAMMOGRAPHIC IMAGE ANALYSIS SOCIETY
NOTES
   represents the left (even filename numbers) and right mammograms
mdb001 G CIRC B 535 425 197
mdb002 G NORM
mdb003 D NORM \t
mdb004 D CALC M *NOTE 3*
mdb059 F CIRC B
mdb060 F ASYM B 400 300 20
mdb143 F ARCH B 1 2 3
mdb144 F MISC B 233 994 29
mdb144 F MISC M 313 540 27
mdb145 D SPIC B 669 543 49

=======
"""
NAMES = ["mdb001", "mdb002", "mdb003", "mdb004", "mdb059", "mdb060", "mdb143", "mdb144", "mdb145"]


def png(side: int = 1024) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side), 7).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image = png()
    (tmp_path / "Info.txt").write_text(INFO)
    for name in NAMES:
        (tmp_path / f"{name}.png").write_bytes(image)
    return tmp_path


def exams(folder: Path) -> dict[str, Exam]:
    return {exam.exam_id: exam for exam in Dataset(str(folder)).exams()}


def test_exams_are_sorted_and_describe_the_image(folder):
    found = Dataset(str(folder)).exams()
    assert [exam.exam_id for exam in found] == NAMES
    first = found[0]
    assert (first.view, first.spacing_mm, first.density, first.anomalous) == ("MLO", 0.2, "G", True)
    assert [exam.anomalous for exam in found[1:4]] == [False, False, True]


def test_odd_is_the_right_and_even_the_left_breast_of_one_patient(folder):
    found = exams(folder)
    sides = [(found[n].laterality, found[n].patient_id) for n in ("mdb001", "mdb002", "mdb059", "mdb144")]
    assert sides == [("R", "mdb001-002"), ("L", "mdb001-002"), ("R", "mdb059-060"), ("L", "mdb143-144")]
    split = splits.assign(found.values())
    assert split["mdb003"] == split["mdb004"]


def test_y_counts_from_the_bottom(folder):
    (lesion,) = exams(folder)["mdb001"].lesions
    assert lesion.circle == (1023 - 425, 535, 197)


def test_every_finding_has_its_kind(folder):
    kinds = {lesion.finding: lesion.kind for exam in exams(folder).values() for lesion in exam.lesions}
    assert kinds == {
        "CIRC": "mass",
        "SPIC": "mass",
        "MISC": "mass",
        "CALC": "calcification",
        "ARCH": "distortion",
        "ASYM": "asymmetry",
    }


def test_several_lines_are_several_lesions(folder):
    benign, malignant = exams(folder)["mdb144"].lesions
    assert (benign.malignant, benign.circle) == (False, (29, 233, 29))
    assert (malignant.malignant, malignant.circle) == (True, (483, 313, 27))


@pytest.mark.parametrize("name", ["mdb004", "mdb059"])
def test_a_lesion_without_a_circle_is_not_located_and_has_no_mask(folder, name):
    exam = exams(folder)[name]
    (lesion,) = exam.lesions
    assert exam.anomalous
    assert not lesion.located
    with pytest.raises(DatasetError, match=name):
        Dataset(str(folder)).lesion_mask(exam, lesion)


def test_the_mask_is_the_circle(folder):
    exam = exams(folder)["mdb060"]
    mask = Dataset(str(folder)).lesion_mask(exam, exam.lesions[0])
    assert mask.shape == (1024, 1024)
    np.testing.assert_allclose(np.argwhere(mask).mean(axis=0), (723, 400), atol=1e-9)
    assert mask.sum() == pytest.approx(np.pi * 20**2, rel=0.01)


def test_pixels_are_the_full_scale_of_the_file(folder):
    pixels = Dataset(str(folder)).pixels(exams(folder)["mdb001"])
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, 7 / 255, rtol=1e-6)


def test_pgm_files_below_the_folder_are_found_too(folder):
    (folder / "mdb002.png").unlink()
    (folder / "pgm").mkdir()
    (folder / "pgm" / "mdb002.pgm").write_bytes(b"P5\n1024 1024\n255\n" + bytes([51]) * 1024**2)
    exam = exams(folder)["mdb002"]
    np.testing.assert_allclose(Dataset(str(folder)).pixels(exam), 0.2, rtol=1e-6)


def test_it_reads_any_url_and_pickles():
    storage.write_bytes("memory://mias/Info.txt", INFO.split("mdb003")[0].encode())
    for name in ("mdb001", "mdb002"):
        storage.write_bytes(f"memory://mias/{name}.png", png())
    dataset = pickle.loads(pickle.dumps(Dataset("memory://mias")))
    assert [exam.exam_id for exam in dataset.exams()] == ["mdb001", "mdb002"]
    assert dataset.pixels(dataset.exams()[0]).shape == (1024, 1024)


def test_a_label_without_its_image_is_named(folder):
    (folder / "mdb003.png").unlink()
    with pytest.raises(DatasetError, match=r"no image for mdb003, which Info\.txt lists"):
        exams(folder)


def test_an_image_without_a_label_is_named(folder):
    (folder / "mdb322.png").write_bytes(png())
    with pytest.raises(DatasetError, match=r"Info\.txt: no line for mdb322"):
        exams(folder)


def test_two_files_of_one_image_are_named(folder):
    (folder / "mdb003.pgm").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"mdb003\.pgm.*mdb003\.png"):
        exams(folder)


def test_info_txt_must_be_there(folder):
    (folder / "Info.txt").unlink()
    with pytest.raises(DatasetError, match=r"Info\.txt, which is not there"):
        exams(folder)


def test_an_empty_info_txt_is_not_a_data_set(tmp_path):
    (tmp_path / "Info.txt").write_text("NOTES\n")
    with pytest.raises(DatasetError, match="lists no image"):
        exams(tmp_path)


def test_the_folder_must_be_there(tmp_path):
    with pytest.raises(StorageError):
        exams(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "line",
    ["mdb005 F", "mdb005 F CIRC", "mdb005 X NORM", "mdb005 F MASS B", "mdb005 F CIRC B 1 2", "mdb5 F NORM"],
)
def test_a_line_that_is_not_mias_is_quoted(folder, line):
    (folder / "Info.txt").write_text(INFO + line + "\n")
    with pytest.raises(DatasetError, match=f"not a line of mini-MIAS: '{line}'"):
        exams(folder)


def test_a_resized_image_is_refused(folder):
    (folder / "mdb001.png").write_bytes(png(512))
    with pytest.raises(DatasetError, match=r"mdb001\.png: mini-MIAS is 1024 x 1024 px, not \(512, 512\)"):
        Dataset(str(folder)).pixels(exams(folder)["mdb001"])
