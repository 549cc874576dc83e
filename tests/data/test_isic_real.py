"""The shared dermoscopic images, against what their provenance says and their bytes show."""

import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from rayad import storage
from rayad.datasets import isic
from rayad.datasets.exam import source_of
from rayad.datasets.splits import assign
from rayad.imaging.dermoscopy import Preprocessing

pytestmark = pytest.mark.data


def test_uda1_has_418_images_and_no_copy_in_two_splits(real_data: Path):
    exams = isic.Dataset(str(real_data / "isic-uda1")).exams()
    assert len(exams) == 418
    owners = defaultdict(set)
    for exam in exams:
        owners[hashlib.sha256(storage.read_bytes(exam.url)).hexdigest()].add(exam.patient_id)
    assert all(len(patients) == 1 for patients in owners.values())


def test_ham10000_has_its_diagnoses(real_data: Path):
    exams = isic.Dataset(str(real_data / "ham10000-224")).exams()
    found = Counter(lesion.finding for exam in exams for lesion in exam.lesions)
    assert found == {"mel": 300, "bcc": 150, "akiec": 120}
    assert Counter(exam.anomalous for exam in exams)[False] == 1750
    assert set(assign(exams).values()) == {"train", "validation", "calibration", "development", "test"}


@pytest.mark.parametrize("name", ["isic-uda1", "ham10000-224"])
def test_images_have_skin_and_colours(real_data: Path, name: str):
    dataset = isic.Dataset(str(real_data / name))
    for exam in dataset.exams()[::40]:
        prepared = Preprocessing().prepare(source_of(dataset, exam))
        assert prepared.pixels.shape == (64, 64, 3)
        assert prepared.tissue.mean() > 0.4
        assert prepared.pixels.std() > 0.02
