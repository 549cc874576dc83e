"""Mammograms of a real archive by DICOMweb: the same exams, pixels and masks as from files, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import requests
from pydicom import dcmread
from pydicom.uid import RLELossless

from rayad.datasets import dicom
from rayad.datasets.content import contents
from rayad.datasets.identity import KEY
from rayad.errors import StorageError
from rayad.imaging import dicomweb
from tests.dicoms import mammogram, written
from tests.unit.test_dicom_dataset import segmented

PIXELS = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)
LOGIN = ("reader", "secret of the reader")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv(KEY, "a secret of this test")
    monkeypatch.setenv("DICOMWEB_USER", LOGIN[0])
    monkeypatch.setenv("DICOMWEB_PASSWORD", LOGIN[1])
    dicomweb._client.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, orthanc) -> Path:
    """Files that the archive has too: two mammograms, one of them compressed, a segmentation, a magnification, a CT."""
    folder = tmp_path_factory.mktemp("files")
    compressed = mammogram(PIXELS, PatientID="MRN-2", ViewPosition="CC")
    compressed.compress(RLELossless)
    files = {
        "1.dcm": mammogram(PIXELS, PatientID="MRN-1", ImageLaterality="L"),
        "2.dcm": compressed,
        "3.dcm": mammogram(PIXELS, PatientID="MRN-2", EstimatedRadiographicMagnificationFactor="1.8"),
        "4.dcm": mammogram(PIXELS, PatientID="MRN-3", Modality="CT"),
    }
    for name, dataset in files.items():
        (folder / name).write_bytes(written(dataset))
    mask = np.zeros((64, 48), np.uint8)
    mask[10:20, 5:9] = 1
    segmented(folder, "1.dcm", mask, "Mass")
    for path in folder.iterdir():
        root = orthanc.removesuffix("/dicom-web")
        requests.post(f"{root}/instances", data=path.read_bytes(), auth=LOGIN, timeout=30).raise_for_status()
    return folder


def test_an_archive_gives_what_its_files_give(folder, orthanc):
    of_web, of_files = dicom.Dataset(orthanc), dicom.Dataset(str(folder))
    exams, files = of_web.exams(), of_files.exams()
    facts = ("exam_id", "patient_id", "anomalous", "view", "laterality", "spacing_mm", "scanner")
    assert [[getattr(e, f) for f in facts] for e in exams] == [[getattr(e, f) for f in facts] for e in files]
    for exam, file in zip(exams, files, strict=True):
        np.testing.assert_array_equal(of_web.pixels(exam), of_files.pixels(file))
    made_of = contents(of_web, exams)
    assert len(set(made_of.values())) == len(exams)
    assert made_of == contents(of_web, exams)
    (exam,) = [exam for exam in exams if exam.lesions]
    (file,) = [file for file in files if file.lesions]
    np.testing.assert_array_equal(
        of_web.lesion_mask(exam, exam.lesions[0]), of_files.lesion_mask(file, file.lesions[0])
    )
    assert [found.reason for found in of_web.excluded()] == ["magnification view"]  # the CT is not asked for


def test_a_table_names_instances(folder, orthanc, tmp_path):
    instance = str(dcmread(folder / "2.dcm").SOPInstanceUID)
    (tmp_path / "table.csv").write_text(f"image,label\n{instance},normal\n")
    exams = dicom.Dataset(orthanc, table=str(tmp_path / "table.csv")).exams()
    assert [exam.anomalous for exam in exams if exam.url.endswith(instance)] == [False]


def test_many_instances_come_page_by_page(folder, orthanc, monkeypatch):
    whole = dicomweb.instances(orthanc)
    monkeypatch.setattr(dicomweb, "PAGE", 1)
    assert dicomweb.instances(orthanc) == whole
    assert len(whole) == 4


def test_what_an_archive_refuses_is_said(folder, orthanc, monkeypatch):
    url = dicom.Dataset(orthanc).exams()[0].url
    monkeypatch.setenv("DICOMWEB_PASSWORD", "wrong")
    dicomweb._client.cache_clear()
    with pytest.raises(StorageError, match="the server answers 401: credentials come from DICOMWEB_TOKEN"):
        dicom.Dataset(orthanc).exams()
    monkeypatch.setenv("DICOMWEB_PASSWORD", LOGIN[1])
    dicomweb._client.cache_clear()
    with pytest.raises(StorageError, match="the server answers 404"):
        dicomweb.instance(f"{url.rpartition('/')[0]}/1.2.3")
    with pytest.raises(StorageError, match=r"cannot read http://127.0.0.1:9/dicom-web"):
        dicomweb.instances("http://127.0.0.1:9/dicom-web")
    with pytest.raises(StorageError, match="an instance expected"):
        dicomweb.instance(f"{orthanc}/studies/1")
    with pytest.raises(StorageError, match="ValueError"):
        dicomweb.instance(f"{orthanc}/studies/{'1' * 70}/series/2/instances/3")
