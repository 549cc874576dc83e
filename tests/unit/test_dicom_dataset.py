"""A folder of DICOM files: mammograms, what is none, labels, segmentations, and patients without their names."""

import shutil
from collections import Counter
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from rayad.datasets import dicom
from rayad.datasets.exam import Images
from rayad.datasets.identity import KEY, pseudonym
from rayad.errors import DatasetError, OptionError
from rayad.imaging import plausibility
from rayad.imaging.segmentation import segments
from tests.dicoms import code, mammogram, written

PIXELS = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(KEY, "a secret of this test")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two mammograms of a patient and one of another, and nine files that are none."""
    spot = code("399162004", ViewModifierCodeSequence=[code("399055006")])
    files = {
        "a/1.dcm": mammogram(PIXELS, PatientID="MRN-77", PatientName="Planted^Name", ImageLaterality="L"),
        "a/2": mammogram(PIXELS, PatientID="MRN-77", PatientName="Planted^Name", ViewPosition="CC"),
        "b/1.dcm": mammogram(PIXELS, PatientID="MRN-78", ImagerPixelSpacing=None),
        "b/tomo.dcm": mammogram(
            np.stack([PIXELS] * 3), PatientID="MRN-78", NumberOfFrames=3, SOPClassUID="1.2.840.10008.5.1.4.1.1.13.1.3"
        ),
        "b/spot.dcm": mammogram(PIXELS, PatientID="MRN-78", ViewCodeSequence=[spot]),
        "b/raw.dcm": mammogram(PIXELS, PatientID="MRN-79", PresentationIntentType="FOR PROCESSING"),
        "b/nobody.dcm": mammogram(PIXELS, PatientID=""),
        "b/chest.dcm": mammogram(PIXELS, PatientID="MRN-78", Modality="CT"),
    }
    for name, dataset in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(written(dataset))
    shutil.copy(tmp_path / "a/2", tmp_path / "b/again.dcm")
    (tmp_path / "b/damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x08\0")
    (tmp_path / "b/empty.dcm").write_bytes(b"")
    (tmp_path / "b/readme.txt").write_text("not looked at")
    return tmp_path


def segmented(
    folder: Path, of: str, mask: np.ndarray, label: str, category=codes.SCT.MorphologicallyAbnormalStructure
) -> Path:
    """Write a segmentation of a file's image."""
    image = dcmread(folder / of)
    for keyword in (
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
        "StudyID",
        "StudyDate",
        "StudyTime",
    ):
        if keyword not in image:
            setattr(image, keyword, "")
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=label,
        segmented_property_category=category,
        segmented_property_type=codes.SCT.Mass,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )
    made = hd.seg.Segmentation(
        source_images=[image],
        pixel_array=mask,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[description],
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="nobody",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    path = folder / f"seg-{label}.dcm"
    made.save_as(path)
    return path


def test_mammograms_are_exams_and_everything_else_is_listed_with_its_reason(archive):
    dataset = dicom.Dataset(str(archive), spacing_mm=0.07)
    assert isinstance(dataset, Images)
    exams = dataset.exams()
    assert Counter(exam.patient_id for exam in exams) == {pseudonym("MRN-77"): 2, pseudonym("MRN-78"): 1}
    first = {(exam.laterality, exam.view): exam for exam in exams if exam.patient_id == pseudonym("MRN-77")}
    assert set(first) == {("L", "MLO"), ("R", "CC")}
    assert first["L", "MLO"].exam_id.startswith(f"{pseudonym('MRN-77')}-L-MLO-")
    assert {exam.spacing_mm for exam in exams} == {0.1, 0.07}
    assert all(exam.anomalous is None for exam in exams)
    assert {exam.anomalous for exam in dicom.Dataset(str(archive), 0.07, healthy=True).exams()} == {False}
    reasons = {Path(found.url).name: found.reason for found in dataset.excluded()}
    assert set(reasons) == {
        "tomo.dcm",
        "spot.dcm",
        "raw.dcm",
        "nobody.dcm",
        "chest.dcm",
        "again.dcm",
        "damaged.dcm",
        "empty.dcm",
        "readme.txt",
    }
    for name, reason in (
        ("tomo.dcm", "tomosynthesis of 3 slices"),
        ("spot.dcm", "spot compression"),
        ("raw.dcm", "raw image"),
        ("nobody.dcm", "no patient"),
        ("chest.dcm", "modality CT"),
        ("again.dcm", "a copy of"),
        ("damaged.dcm", "damaged.dcm: "),
        ("empty.dcm", "empty.dcm: "),
        ("readme.txt", "neither image nor label"),
    ):
        assert reason in reasons[name], name
    np.testing.assert_allclose(dataset.pixels(exams[0]), PIXELS / 65535, atol=1e-7)


def test_no_identifier_is_in_exams_reasons_or_messages(archive):
    dataset = dicom.Dataset(str(archive), spacing_mm=0.07)
    said = repr([(exam.exam_id, exam.patient_id, exam.lesions) for exam in dataset.exams()])
    said += repr([found.reason for found in dataset.excluded()])
    assert "MRN" not in said
    assert "Planted" not in said
    instance = str(dcmread(archive / "a/1.dcm").SOPInstanceUID)
    assert instance[-8:] not in said
    assert {exam.patient_id for exam in dicom.Dataset(str(archive), 0.07, patient_ids="plain").exams()} == {
        "MRN-77",
        "MRN-78",
    }


def test_patients_are_hashed_with_a_key_of_their_owner(archive, monkeypatch):
    before = {exam.patient_id for exam in dicom.Dataset(str(archive), 0.07).exams()}
    monkeypatch.setenv(KEY, "another secret of this test")
    assert before.isdisjoint(exam.patient_id for exam in dicom.Dataset(str(archive), 0.07).exams())
    for wrong in ("", "short"):
        monkeypatch.setenv(KEY, wrong)
        with pytest.raises(OptionError, match="RAYAD_PATIENT_KEY must hold a secret of at least 16 characters"):
            dicom.Dataset(str(archive), 0.07).exams()


def test_a_table_labels_files(archive):
    (archive / "labels.csv").write_text(
        "image,label,patient,density,kind,row,col,radius\n"
        "a/1.dcm,,,3,mass,20,30,5\n"
        "b/1.dcm,normal,,,,,,\n"
        "b/nobody.dcm,normal,somebody,,,,,\n"
    )
    dataset = dicom.Dataset(str(archive), spacing_mm=0.07)
    exams = {Path(exam.url).name: exam for exam in dataset.exams() if not exam.url.endswith("a/2")}
    left = next(exam for exam in dataset.exams() if exam.laterality == "L")
    assert (left.anomalous, left.density, left.lesions[0].kind) == (True, "3", "mass")
    assert dataset.lesion_mask(left, left.lesions[0])[20, 35]
    assert exams["nobody.dcm"].patient_id == pseudonym("somebody")
    assert exams["nobody.dcm"].anomalous is False
    (archive / "labels.csv").write_text("image,label\nc/1.dcm,normal\n")
    with pytest.raises(DatasetError, match=r"not there: c/1\.dcm"):
        dataset.exams()


def test_segmentations_are_lesions_of_their_image(archive):
    mask = np.zeros((64, 48), np.uint8)
    mask[10:20, 5:9] = 1
    segmented(archive, "a/1.dcm", mask, "Mass 1")
    segmented(archive, "a/2", 1 - mask, "Breast", codes.SCT.AnatomicalStructure)
    dataset = dicom.Dataset(str(archive), spacing_mm=0.07)
    exams = {exam.laterality + exam.view: exam for exam in dataset.exams()}
    (lesion,) = exams["LMLO"].lesions
    assert (lesion.kind, lesion.finding, exams["LMLO"].anomalous) == ("mass", "Mass 1 Mass", True)
    np.testing.assert_array_equal(dataset.lesion_mask(exams["LMLO"], lesion), mask > 0)
    assert exams["RCC"].lesions == ()
    (archive / "labels.csv").write_text("image,label\na/1.dcm,normal\n")
    with pytest.raises(DatasetError, match="is normal and has a segmentation"):
        dataset.exams()


def test_a_damaged_segmentation_is_listed(archive):
    path = segmented(archive, "a/1.dcm", np.ones((64, 48), np.uint8), "Mass")
    assert segments(str(path))[0].images == (str(dcmread(archive / "a/1.dcm").SOPInstanceUID),)
    whole = path.read_bytes()
    path.write_bytes(whole[:-400])
    dataset = dicom.Dataset(str(archive), spacing_mm=0.07)
    dataset.exams()
    path.write_bytes(whole.replace(b"SEG", b"SEX"))
    dataset.exams()


def test_what_is_missing_is_said(archive, tmp_path):
    with pytest.raises(DatasetError, match=r"b/1.dcm: no pixel spacing, in the file, labels.csv or the option"):
        dicom.Dataset(str(archive)).exams()
    converted = dicom.Dataset(str(archive), 0.07, for_processing="convert")
    assert len(converted.exams()) == 4
    assert dicom.Dataset(str(archive / "a")).excluded() == []
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match="no mammogram among 0 files"):
        dicom.Dataset(str(tmp_path / "none")).exams()


def test_the_real_mammograms_of_cbis_ddsm(real_data):
    dataset = dicom.Dataset(str(real_data / "cbis-ddsm-dicom"), spacing_mm=0.05, healthy=True)
    assert sorted((exam.laterality, exam.view) for exam in dataset.exams()) == [("L", "CC"), ("R", "CC")]
    assert len({exam.patient_id for exam in dataset.exams()}) == 2


def test_images_of_no_standard_view_can_be_wanted(tmp_path, monkeypatch):
    (tmp_path / "1.dcm").write_bytes(written(mammogram(PIXELS, BreastImplantPresent="YES")))
    dataset = dicom.Dataset(str(tmp_path), patient_ids="plain")
    with pytest.raises(DatasetError, match="a breast with an implant"):
        dataset.exams()
    monkeypatch.setenv(plausibility.VARIABLE, "kind")
    assert len(dataset.exams()) == 1
