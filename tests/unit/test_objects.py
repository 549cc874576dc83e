"""DICOM objects against other readers: pydicom, highdicom's reader of segmentations, and dicom3tools' checker."""

import io
import shutil
import subprocess
import warnings
from dataclasses import replace

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from rayad.errors import ImageError
from rayad.heatmaps.answers import DetectorName
from rayad.heatmaps.judgement import Judgement, judge
from rayad.imaging import dicom
from rayad.imaging.picture import Prepared, Source
from rayad.imaging.spacing import resample
from rayad.scoring.calibrate import calibrate
from rayad.scoring.dense import places
from rayad.scoring.detector import Heatmap
from rayad.scoring.rule import Rule
from rayad.serving import RESEARCH_USE, objects
from tests.conftest import missing
from tests.dicoms import complete, written

SHAPE = (301, 190)
LESION = (150, 70)
"""Row and column of the middle of a bright square of 9 px."""
BY = DetectorName(name="pca", sha256="0123456789abcdef" * 4)
IN_SPACE = {
    "FrameOfReferenceUID": "1.2.3",
    "PositionReferenceIndicator": "",
    "ImagePositionPatient": [1.0, 2.0, 3.0],
    "ImageOrientationPatient": [0.0, 1.0, 0.0, 0.0, 0.0, -1.0],
    "SliceThickness": 40,
}


def with_lesion() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(500, 1500, SHAPE).astype(np.uint16)
    row, column = LESION
    pixels[row - 4 : row + 5, column - 4 : column + 5] = 4095
    return pixels


def judged(pixels: np.ndarray, *, alarmed: bool = True) -> Judgement:
    """Of an image of 0.1 mm a px by its brightness at 0.2 mm, places 1.6 mm apart; the last columns are no tissue."""
    stored = resample(pixels, 0.1, 0.2)
    rows, columns = places(*stored.shape, 8)
    scores = np.array([[stored[max(0, r - 4) : r + 4, max(0, c - 4) : c + 4].mean() for c in columns] for r in rows])
    scores[:, -2:] = np.nan
    healthy = np.random.default_rng(1).normal(0.5 if alarmed else 1.5, 0.01, (20, 20)).astype(np.float32)
    if alarmed:
        healthy -= 0.2
    tissue = np.ones(stored.shape, bool)
    prepared = Prepared(stored, stored, tissue, tissue, 0.2, Source(pixels, 0.1))
    heatmap = Heatmap(scores.astype(np.float32), rows, columns, ~np.isnan(scores))
    return judge(prepared, heatmap, calibrate({f"patient {n}": [healthy] for n in range(19)}))


def made(source: Dataset, *, alarmed: bool = True) -> dict[str, Dataset]:
    """The objects as another program reads them."""
    pixels = dicom.decode(written(source), "source")
    found = objects.objects(source, pixels, judged(pixels, alarmed=alarmed), BY)
    return {kind: dcmread(io.BytesIO(objects.to_bytes(dataset))) for kind, dataset in found.items()}


def points(report: Dataset) -> list[tuple[float, float]]:
    """Column and row of every point in a report."""
    if report.get("ValueType") == "SCOORD":
        return [tuple(report.GraphicData)]
    return [point for item in report.get("ContentSequence", []) for point in points(item)]


def texts(report: Dataset) -> list[str]:
    own = [str(report.TextValue)] if "TextValue" in report else []
    return own + [text for item in report.get("ContentSequence", []) for text in texts(item)]


def numbers(report: Dataset) -> list[tuple[str, float]]:
    own = []
    if report.get("ValueType") == "NUM":
        value = report.MeasuredValueSequence[0].NumericValue
        own = [(report.ConceptNameCodeSequence[0].CodeMeaning, float(value))]
    return own + [number for item in report.get("ContentSequence", []) for number in numbers(item)]


def test_a_lesion_is_at_the_same_pixel_in_all_objects():
    source = complete(with_lesion())
    found = made(source)
    segmented = hd.seg.segread(io.BytesIO(objects.to_bytes(found["seg"])))
    mask = segmented.get_pixels_by_source_instance(
        [source.SOPInstanceUID], segment_numbers=[1], ignore_spatial_locations=True
    )[0, ..., 0].astype(int)
    shown = found["sc"].pixel_array.astype(int)
    assert mask.shape == shown.shape[:2] == SHAPE
    assert mask[LESION]
    assert mask.sum() == pytest.approx(256, abs=40)  # one place of 1.6 mm, in px of 0.1 mm
    colourful = np.ptp(shown, axis=2) > 50
    assert colourful[LESION]
    assert not colourful[mask == 0].any()
    assert (shown[mask > 0].min(axis=1) == 255).any()  # the white outline
    ((column, row),) = points(found["sr"])
    assert abs(row - 0.5 - LESION[0]) < 16
    assert abs(column - 0.5 - LESION[1]) < 16
    assert mask[int(row), int(column)]


def test_places_lie_where_the_image_was_looked_at():
    """301 px are 150 px of 0.2 mm, so a place of 8 px is 16.05 rows high, and the tenth begins at row 144.5."""
    found = made(complete(with_lesion()))["seg"].pixel_array
    rows, columns = (np.flatnonzero(found.any(axis=axis)) for axis in (1, 0))
    assert (rows[0], rows[-1]) == (144, 160)
    assert (columns[0], columns[-1]) == (64, 79)


def test_patient_and_study_are_those_of_the_image_and_nothing_is_added():
    source = complete(with_lesion(), PatientComments="words of the source", SpecificCharacterSet="ISO_IR 192")
    source.PatientName = "Größe^Ärztin"
    before = written(source)
    made(source)
    assert written(source) == before
    for kind, dataset in made(source).items():
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate"):
            assert dataset[keyword].value == source[keyword].value, (kind, keyword)
        assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
        assert dataset.preamble == b"\0" * 128
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert source.SOPInstanceUID in str(dataset)
        assert dataset.Manufacturer == "rayad"
        assert dataset.DeviceSerialNumber == BY.sha256
        assert "research use only" in dataset.SeriesDescription
        assert RESEARCH_USE in (texts(dataset) if kind == "sr" else dataset.ImageComments)


def test_the_report_says_what_the_judgement_says():
    source = complete(with_lesion())
    pixels = dicom.decode(written(source), "source")
    answer = judged(pixels).answer(BY, {})
    report = made(source)["sr"]
    (finding,) = answer.findings
    expected = [answer.score, answer.p_value, answer.p_value_floor, answer.calibration_patients, answer.findings_total]
    expected += [finding.score, finding.p_value, finding.healthy_quantile, finding.size_mm2]
    assert [value for _, value in numbers(report)] == pytest.approx(expected)
    assert points(report) == [pytest.approx((finding.column + 0.5, finding.row + 0.5))]
    assert {"pca", BY.sha256} <= set(texts(report))


@pytest.mark.parametrize(("threshold", "word"), [(-1e9, "abnormal"), (1e9, "normal")])
def test_the_report_says_normal_or_abnormal(threshold, word):
    source = complete(with_lesion())
    pixels = dicom.decode(written(source), "source")
    ruled = replace(judged(pixels), rule=Rule("score", threshold), threshold=threshold)
    report = objects.objects(source, pixels, ruled, BY)["sr"]
    assert any(f"The image is {word}: abnormal is a score above {threshold:g}" in text for text in texts(report))


def test_where_nothing_is_marked_the_report_says_so():
    found = made(complete(with_lesion()), alarmed=False)
    assert list(found) == ["sc", "sr"]
    assert any(text.startswith("Nothing is marked") for text in texts(found["sr"]))
    assert points(found["sr"]) == []


def test_the_same_scoring_gives_the_same_instances_and_another_others():
    source = complete(with_lesion())
    uids = {kind: dataset.SOPInstanceUID for kind, dataset in made(source).items()}
    assert uids == {kind: dataset.SOPInstanceUID for kind, dataset in made(source).items()}
    assert uids == {kind: objects.uid(source.SOPInstanceUID, BY.sha256, kind) for kind in uids}
    others = [
        objects.uid("1.2.3", BY.sha256, "sr"),
        objects.uid(source.SOPInstanceUID, "f" * 64, "sr"),
        objects.uid(source.SOPInstanceUID, BY.sha256, "sr", {"step_mm": "1.6"}),
    ]
    assert len({*uids.values(), *others}) == 6


def test_a_healthy_image_keeps_its_greys():
    """Colours are those of healthy quantiles: what is brightest in this image has none."""
    source = complete(with_lesion())
    shown = made(source, alarmed=False)["sc"].pixel_array.astype(int)
    assert (np.ptp(shown, axis=2) == 0).all()


def test_an_image_in_space_has_a_parametric_map_there():
    source = complete(with_lesion(), **IN_SPACE)
    found = made(source)
    assert list(found) == ["sc", "seg", "pm", "sr"]
    values = np.frombuffer(found["pm"].FloatPixelData, np.float32).reshape(SHAPE)
    assert values[LESION] == pytest.approx(1, abs=1e-3)
    assert (values[:, -16:] == objects.UNSCORED).all()
    for kind in ("seg", "pm"):
        assert found[kind].FrameOfReferenceUID == "1.2.3"
        shared, own = found[kind].SharedFunctionalGroupsSequence[0], found[kind].PerFrameFunctionalGroupsSequence[0]
        groups = [group for group in (shared, own) if "PlanePositionSequence" in group]
        assert list(groups[0].PlanePositionSequence[0].ImagePositionPatient) == [1, 2, 3]
        assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == [0.1, 0.1]
        assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == [0, 1, 0, 0, 0, -1]


@pytest.mark.parametrize(
    "attributes", [{}, {"BodyPartThickness": 55}, IN_SPACE], ids=["projection", "compressed", "in space"]
)
def test_a_checker_finds_no_errors(attributes, tmp_path):
    if not shutil.which("dciodvfy"):
        missing("no dciodvfy here (Debian: apt-get install dicom3tools)")
    for kind, dataset in made(complete(with_lesion(), **attributes)).items():
        (tmp_path / kind).write_bytes(objects.to_bytes(dataset))
        said = subprocess.run(["dciodvfy", str(tmp_path / kind)], capture_output=True, text=True, check=False).stderr
        assert "Error" not in said, f"{kind}: {said}"
        assert said.strip(), "it looked at nothing"


def test_old_headers_with_gaps_are_enough():
    gaps = ("PatientBirthDate", "PatientSex", "StudyTime", "StudyID", "AccessionNumber", "ImageLaterality")
    source = complete(with_lesion(), PatientOrientation="CC", FrameOfReferenceUID="1.2.3", **dict.fromkeys(gaps))
    found = made(source)
    assert list(found) == ["sc", "seg", "sr"]
    assert not found["sc"].PatientOrientation


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PatientSex", "female"), ("PatientBirthDate", "unknown"), ("StudyDate", "2025.03.04"), ("StudyTime", "10:11:12")],
)
def test_values_of_old_forms_are_carried_over_as_they_are(keyword, value):
    with warnings.catch_warnings(action="ignore"):
        data = written(complete(with_lesion(), **{keyword: value}))
        pixels = dicom.decode(data, "source")
        found = objects.objects(dcmread(io.BytesIO(data)), pixels, judged(pixels), BY)
        assert {str(dcmread(io.BytesIO(objects.to_bytes(one)))[keyword].value) for one in found.values()} == {value}


def test_what_cannot_be_referred_to_is_refused():
    source = complete(with_lesion())
    pixels = dicom.decode(written(source), "source")
    said = judged(pixels)
    for keyword, value, reason in (
        ("NumberOfFrames", 3, "one frame expected, not of 3"),
        ("Rows", 300, "301 x 190 px was scored, not of 300 x 190"),
        ("Rows", None, "no image"),
        ("StudyInstanceUID", "", "an image with StudyInstanceUID expected"),
        ("SOPClassUID", "1.2.3.4", "SOP class of the standard expected"),
    ):
        with pytest.raises(ImageError, match=reason):
            objects.objects(complete(with_lesion(), **{keyword: value}), pixels, said, BY)


def test_what_is_written_is_a_file():
    data = objects.to_bytes(made(complete(with_lesion()))["sr"])
    assert data[128:132] == b"DICM"
    assert dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


CHARACTERS = {
    "UTF-8 that says Latin-1": (b"ISO_IR 100", "Müller".encode(), "Größe^Ärztin".encode()),
    "Latin-1 that says nothing": (b"", "Müller".encode("latin-1"), "Größe^Ärztin".encode("latin-1")),
    "no character set": (b"ISO_IR 9999", b"abc\xff", b"x^\xfe"),
    "Japanese with escapes": (
        b"\\ISO 2022 IR 87",
        b"\x1b$B;3ED\x1b(B",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",
    ),
    "Chinese": (b"GB18030", "王 7".encode("gb18030"), "王^小东".encode("gb18030")),
    "UTF-8": (b"ISO_IR 192", "山 7".encode(), "山田^太郎".encode()),
}


@pytest.mark.filterwarnings("ignore:Unknown encoding")
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(("characters", "patient", "name"), CHARACTERS.values(), ids=CHARACTERS)
def test_who_the_patient_is_is_carried_over_byte_by_byte(characters, patient, name, implicit):
    source = complete(with_lesion(), PatientID="I" * 16, PatientName="N" * 40, SpecificCharacterSet="ISO_IR 6")
    source.StudyDescription = "D" * 16
    source.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    file = io.BytesIO()
    source.save_as(file, enforce_file_format=True)
    head = b"\x08\0\x05\0" + (b"" if implicit else b"CS")
    length = 4 if implicit else 2
    data = file.getvalue().replace(b"I" * 16, patient.ljust(16)).replace(b"N" * 40, name.ljust(40))
    data = data.replace(b"D" * 16, patient.ljust(16))
    padded = characters + b" " * (len(characters) % 2)
    data = data.replace(
        head + (8).to_bytes(length, "little") + b"ISO_IR 6", head + len(padded).to_bytes(length, "little") + padded
    )
    attributes = dicom.attributes(data, "source")
    pixels = dicom.decode(data, "source")
    for kind, dataset in objects.objects(attributes, pixels, judged(pixels, alarmed=True), BY).items():
        found = dcmread(io.BytesIO(objects.to_bytes(dataset)))
        assert found.get("SpecificCharacterSet") == attributes.get("SpecificCharacterSet")
        for keyword, expected in (("PatientID", patient.ljust(16)), ("PatientName", name.ljust(40))):
            assert found.get_item(tag_for_keyword(keyword)).value == expected, (kind, keyword)
        if "StudyDescription" in found:
            assert found.get_item("StudyDescription").value == patient.ljust(16), kind
