"""Lesions pasted into healthy images change those images in their mask and nowhere else."""

import numpy as np
import pytest

from rayad.datasets import folder, pasted, phantom
from rayad.errors import DatasetError


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> str:
    """A folder of a few healthy images."""
    url = str(tmp_path_factory.mktemp("healthy"))
    dataset = phantom.Dataset(patients=12, diseased=0.0, height=256, width=192)
    folder.export(dataset, dataset.exams(), url)
    return url


def test_each_image_comes_once_with_each_finding(healthy):
    exams = pasted.Dataset(healthy, "folder").exams()
    assert len(exams) % 3 == 0
    assert {e.lesions[0].kind for e in exams} == {"mass", "calcification"}
    assert all(e.anomalous for e in exams)


def test_only_the_lesion_is_brighter_and_it_is_the_same_every_time(healthy):
    dataset, base = pasted.Dataset(healthy, "folder"), folder.Dataset(healthy)
    for exam in dataset.exams()[:3]:
        before, after = base.pixels(exam), dataset.pixels(exam)
        mask = dataset.lesion_mask(exam, exam.lesions[0])
        assert np.array_equal(after[~mask], before[~mask])
        assert (after[mask] - before[mask]).max() > 0.02
        assert np.array_equal(after, dataset.pixels(exam))


def test_without_healthy_validation_patients_there_is_nothing_to_paste_into(tmp_path):
    dataset = phantom.Dataset(patients=2, diseased=1.0, height=256, width=192)
    folder.export(dataset, dataset.exams(), str(tmp_path))
    with pytest.raises(DatasetError, match="no healthy validation patient"):
        pasted.Dataset(str(tmp_path), "folder").exams()
