"""The shared part of mini-MIAS, against what its Info.txt and its films show by themselves."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rayad.datasets import splits
from rayad.datasets.exam import Exam
from rayad.datasets.mias import Dataset

DARK_FILM = ("mdb212", "mdb214")


@pytest.fixture(scope="module")
def folder(real_data: Path) -> Path:
    return real_data / "mini-mias"


@pytest.fixture(scope="module")
def exams(folder: Path) -> list[Exam]:
    return Dataset(str(folder)).exams()


@pytest.fixture(scope="module")
def lines(folder: Path) -> list[list[str]]:
    text = (folder / "Info.txt").read_text("latin-1")
    return [line.split() for line in text.splitlines() if line[:3] == "mdb"]


def test_every_file_and_every_line_is_there(folder, exams, lines):
    assert [exam.exam_id for exam in exams] == sorted(path.stem for path in folder.glob("*.png"))
    assert sum(len(exam.lesions) for exam in exams) == sum(line[2] != "NORM" for line in lines)
    assert sum(lesion.located for exam in exams for lesion in exam.lesions) == sum(len(line) == 7 for line in lines)
    assert {exam.exam_id for exam in exams if not exam.anomalous} == {x[0] for x in lines if x[2] == "NORM"}


def test_patients_are_whole(exams):
    breasts = Counter(exam.patient_id for exam in exams)
    assert set(breasts.values()) == {2}
    split = splits.assign(exams)
    assert all(len({split[e.exam_id] for e in exams if e.patient_id == p}) == 1 for p in breasts)
    assert set(split.values()) == {"train", "validation", "calibration", "test", "development"}


def test_the_right_breasts_face_left(folder, exams):
    """The chest wall is where film is bright along the border: on the right of a right breast's image."""
    dataset = Dataset(str(folder))
    some = exams[::12]
    facing = []
    for exam in some:
        columns = dataset.pixels(exam).mean(axis=0)
        lit = np.flatnonzero(columns > 0.1 * columns.max())
        inside = columns[lit[0] : lit[-1] + 1]
        half = len(inside) // 2
        facing.append("R" if inside[half:].mean() > inside[:half].mean() else "L")
    assert facing == [exam.laterality for exam in some]


def test_lesions_lie_on_tissue_that_is_brighter_than_where_they_would_lie_upside_down(folder, exams):
    dataset = Dataset(str(folder))
    right, wrong = [], []
    for exam in exams:
        for lesion in exam.lesions:
            if lesion.circle is not None and exam.exam_id not in DARK_FILM:
                pixels = dataset.pixels(exam)
                mask = dataset.lesion_mask(exam, lesion)
                right.append(pixels[mask].mean())
                wrong.append(pixels[::-1][mask].mean())
    assert np.mean(right) > np.mean(wrong) + 0.08
    assert min(right) > 0.2
