"""DICOM against what was put in: values, sides, views, spacings, transfer syntaxes, damage."""

import io
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import config, dcmwrite, uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from rayad import storage
from rayad.errors import ImageError
from rayad.imaging import dicom
from tests.dicoms import code, mammogram, written

RAMP = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)


def pixels_of(dataset: Dataset, **options) -> np.ndarray:
    return dicom.decode(written(dataset), "x.dcm", **options)


def header_in(data: bytes) -> dicom.Header:
    storage.write_bytes("memory://x.dcm", data)
    return dicom.header("memory://x.dcm")


def header_of(dataset: Dataset) -> dicom.Header:
    return header_in(written(dataset))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_all_depths_are_kept(bits, signed):
    low = -(2 ** (bits - 1)) if signed else 0
    dtype = np.dtype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")
    values = np.random.default_rng(0).integers(low, low + 2**bits, (40, 30)).astype(dtype)
    expected = (values.astype(float) - low) / (2**bits - 1)
    np.testing.assert_allclose(pixels_of(mammogram(values, bits=bits)), expected, atol=1e-7)


def test_monochrome1_and_a_negative_slope_turn_the_image_around():
    plain = pixels_of(mammogram(RAMP, bits=12))
    turned = pixels_of(mammogram(RAMP, bits=12, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(turned, 1 - plain, atol=1e-6)
    slope = pixels_of(mammogram(RAMP, bits=12, RescaleSlope=-2, RescaleIntercept=7))
    np.testing.assert_allclose(slope, 1 - plain, atol=1e-6)
    same = pixels_of(mammogram(RAMP, bits=12, RescaleSlope=0.5, RescaleIntercept=-100, WindowCenter=9, WindowWidth=3))
    np.testing.assert_allclose(same, plain, atol=1e-6)


def test_a_modality_table_is_looked_up():
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [16, 0, 16], "US"
    table.LUTData = np.linspace(0, 65535, 16).astype(np.uint16).tobytes()
    dataset = mammogram(np.arange(16, dtype=np.uint8).reshape(4, 4), ModalityLUTSequence=[table])
    expected = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4) / 65535
    np.testing.assert_allclose(pixels_of(dataset), expected, atol=1e-6)


def test_padding_is_dark_whichever_way_the_image_is():
    values = np.full((20, 20), 100, np.uint16)
    values[:, :5] = 4000
    facts = {"bits": 12, "PhotometricInterpretation": "MONOCHROME1"}
    found = pixels_of(mammogram(values, PixelPaddingValue=4000, **facts))
    assert (found[:, :5] == 0).all()
    assert (found[:, 5:] > 0.9).all()
    ranged = pixels_of(mammogram(values, PixelPaddingValue=3990, PixelPaddingRangeLimit=4010, **facts))
    assert np.array_equal(found, ranged)


def test_a_raw_image_is_refused_or_its_logarithm_is_taken():
    depth = np.linspace(0, 6, 48 * 64).reshape(64, 48)  # of tissue; rays fall exponentially
    counts = np.round(16000 * np.exp(-depth)).astype(np.uint16)
    facts = {"PresentationIntentType": "FOR PROCESSING", "PixelIntensityRelationship": "LIN"}
    dataset = mammogram(counts, bits=14, **facts, PixelIntensityRelationshipSign=1)
    with pytest.raises(ImageError, match=r"x\.dcm: a raw image .FOR PROCESSING."):
        pixels_of(dataset)
    assert header_of(dataset).unsuitable == "raw image (FOR PROCESSING)"
    found = pixels_of(dataset, for_processing="convert")
    assert np.corrcoef(found.ravel(), depth.ravel())[0, 1] > 0.999
    logarithm = mammogram(RAMP, bits=12, **facts | {"PixelIntensityRelationship": "LOG"})
    logarithm.PixelIntensityRelationshipSign = -1
    np.testing.assert_allclose(pixels_of(logarithm, for_processing="convert"), RAMP / 4095, atol=1e-6)


LOSSLESS = [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.DeflatedExplicitVRLittleEndian]


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda one: one.name.replace(" ", "-"))
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_transfer_syntaxes_give_the_same_bits(syntax, bits):
    values = np.random.default_rng(1).integers(0, 2**bits, (50, 40)).astype(np.uint8 if bits == 8 else np.uint16)
    plain, packed = mammogram(values, bits=bits), mammogram(values, bits=bits)
    if syntax.is_deflated:
        packed.file_meta.TransferSyntaxUID = syntax
    else:
        packed.compress(syntax)
    assert np.array_equal(pixels_of(packed), pixels_of(plain))


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (uid.JPEGLosslessSV1, lambda a: imagecodecs.ljpeg_encode(a, bitspersample=12)),
        (uid.JPEGLossless, lambda a: imagecodecs.ljpeg_encode(a, bitspersample=12)),
        (uid.HTJ2KLossless, lambda a: imagecodecs.htj2k_encode(a)),
    ],
    ids=["JPEG-lossless-SV1", "JPEG-lossless", "HTJ2K"],
)
def test_what_other_encoders_wrote_is_read(syntax, encode):
    values = np.random.default_rng(2).integers(0, 4096, (50, 40)).astype(np.uint16)
    dataset = mammogram(values, bits=12)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([encode(values)])
    dataset["PixelData"].is_undefined_length = True
    np.testing.assert_allclose(pixels_of(dataset), values / 4095, atol=1e-7)


@pytest.mark.parametrize(("rows", "is_whole"), [(50, True), (51, True), (200, True), (49, False), (0, False)])
def test_run_lengths_of_less_than_the_image_are_refused(rows, is_whole):
    """A segment of rows as literals (PS3.5, G.3): as many as the image has, followed by something else, or fewer."""
    values = np.random.default_rng(2).integers(0, 256, (200, 40)).astype(np.uint8)
    segment = b"".join(bytes([len(row) - 1]) + row.tobytes() for row in values[:rows])
    dataset = mammogram(values[:50], bits=8)
    dataset.file_meta.TransferSyntaxUID = uid.RLELossless
    dataset.PixelData = encapsulate([np.array([1, 64, *[0] * 14], "<u4").tobytes() + segment])
    dataset["PixelData"].is_undefined_length = True
    if is_whole:
        np.testing.assert_allclose(pixels_of(dataset), values[:50] / 255, atol=1e-7)
    else:
        with pytest.raises(ImageError, match=r"damaged"):
            pixels_of(dataset)


def test_bits_that_are_said_to_be_unused_are():
    """Cells of 32 bits, of which 12 are said to be used."""
    values = np.zeros((300, 8), np.uint32)
    values[:, :3] = 4095, 2000, 5 * 4096 + 2000
    dataset = mammogram(RAMP, bits=12)
    dataset.Rows, dataset.Columns, dataset.BitsAllocated = *values.shape, 32
    dataset.PixelData = values.tobytes()
    assert pixels_of(dataset)[0, :4].tolist() == pytest.approx([1, 2000 / 4095, 2000 / 4095, 0])
    assert (pixels_of(dataset) == pixels_of(dataset)[0]).all()


def test_lossy_syntaxes_are_decoded_as_another_decoder_does():
    y, x = np.mgrid[:64, :48]
    values = (128 + 60 * np.sin(y / 9) + 50 * np.cos(x / 7)).astype(np.uint8)
    for syntax, frame, decode in (
        (uid.JPEGBaseline8Bit, imagecodecs.jpeg8_encode(values, level=95), imagecodecs.jpeg8_decode),
        (uid.JPEGLSNearLossless, imagecodecs.jpegls_encode(values, level=2), imagecodecs.jpegls_decode),
        (uid.JPEG2000, imagecodecs.jpeg2k_encode(values, level=40, codecformat="j2k"), imagecodecs.jpeg2k_decode),
    ):
        dataset = mammogram(values)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate([bytes(frame)])
        dataset["PixelData"].is_undefined_length = True
        np.testing.assert_allclose(pixels_of(dataset), decode(frame) / 255, atol=1.01 / 255)


def test_spacing_is_that_of_the_breast():
    def spacing(**facts) -> float:
        return header_of(mammogram(RAMP, **facts)).spacing_mm

    assert spacing() == pytest.approx(0.1)
    assert spacing(EstimatedRadiographicMagnificationFactor=1.25) == pytest.approx(0.08)
    assert spacing(PixelSpacing=[0.09, 0.09]) == pytest.approx(0.09)
    uncorrected = {"PixelSpacing": [0.1, 0.1], "EstimatedRadiographicMagnificationFactor": 1.25}
    assert spacing(**uncorrected) == pytest.approx(0.08)
    assert spacing(**uncorrected, PixelSpacingCalibrationType="GEOMETRY") == pytest.approx(0.1)
    assert spacing(ImagerPixelSpacing=None, NominalScannedPixelSpacing=[0.05, 0.05]) == pytest.approx(0.05)
    assert spacing(ImagerPixelSpacing=None) == 0
    with pytest.raises(ImageError, match=r"x\.dcm: ImagerPixelSpacing: square pixels expected, not 0\.1 by 0\.2 mm"):
        spacing(ImagerPixelSpacing=[0.1, 0.2])


@pytest.mark.parametrize(
    ("orientation", "side", "view"),
    [
        (["P", "FL"], "R", "MLO"),
        (["A", "FR"], "L", "MLO"),
        (["P", "L"], "R", "CC"),
        (["A", "R"], "L", "CC"),
        (["A", "HR"], "R", "MLO"),
        (None, "", ""),
    ],
)
def test_side_and_view_come_from_the_orientation_where_nothing_else_says_them(orientation, side, view):
    found = header_of(mammogram(RAMP, ImageLaterality=None, ViewPosition=None, PatientOrientation=orientation))
    assert (found.laterality, found.view) == (side, view)


def test_side_and_view_come_from_attributes_first():
    found = header_of(mammogram(RAMP, PatientOrientation=["A", "R"]))
    assert (found.laterality, found.view) == ("R", "MLO")
    old = header_of(mammogram(RAMP, ImageLaterality=None, Laterality="L", ViewPosition=None))
    assert (old.laterality, old.view) == ("L", "")
    for value, scheme, view in (("399162004", "SCT", "CC"), ("R-10226", "SRT", "MLO")):
        coded = mammogram(RAMP, ViewPosition=None, ViewCodeSequence=[code(value, scheme)])
        assert header_of(coded).view == view


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"ViewCodeSequence": [code("399162004", ViewModifierCodeSequence=[code("399163009")])]}, "magnification view"),
        ({"EstimatedRadiographicMagnificationFactor": 1.8}, "magnification view"),
        ({"ViewCodeSequence": [code("399162004", ViewModifierCodeSequence=[code("399055006")])]}, "spot compression"),
        ({"Modality": "US"}, "modality US, not a mammogram"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.13.1.3", "NumberOfFrames": 50}, "tomosynthesis of 50 slices"),
        ({"NumberOfFrames": 3}, "3 frames, not one image"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "not a grey image (RGB)"),
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 pixels are more than bounds.pixels"),
        ({"Rows": None}, "no image (MG)"),
    ],
)
def test_what_is_no_projection_of_a_whole_breast_says_so(facts, reason):
    assert header_of(mammogram(RAMP, **facts)).unsuitable.startswith(reason)


def test_a_header_claiming_a_huge_image_is_refused_before_it_is_decoded():
    with pytest.raises(ImageError, match=r"x\.dcm: 65535 x 65535 pixels are more than bounds.pixels=40000000"):
        pixels_of(mammogram(RAMP, Rows=65535, Columns=65535))


def test_what_is_no_dicom_says_so():
    for data in (b"", b"no DICOM at all" * 40, b"\x89PNG\r\n\x1a\n" + bytes(300)):
        with pytest.raises(ImageError, match=r"x\.dcm"):
            dicom.decode(data, "x.dcm")
        with pytest.raises(ImageError, match=r"x\.dcm"):
            header_in(data)


FILES = [written(mammogram(RAMP, bits=12, PatientName="Planted^Name"))]
for _syntax in (uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless):
    _packed = mammogram(RAMP, bits=12)
    _packed.compress(_syntax)
    FILES.append(written(_packed))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(FILES),
    st.integers(0, 2**31),
    st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), max_size=6),
)
def test_damage_is_an_image_error_and_nothing_else(data, cut, changes):
    damaged = bytearray(data[: 1 + cut % (2 * len(data))])
    for at, value in changes:
        damaged[at % len(damaged)] = value
    for attempt in (lambda d: dicom.decode(d, "x.dcm"), header_in):
        message = ""
        try:
            attempt(bytes(damaged))
        except ImageError as error:  # any other error fails the test
            message = str(error)
        assert not message or "x.dcm: " in message
        assert "Planted" not in message


def test_the_real_mammograms_of_cbis_ddsm(real_data: Path):
    for name, side, shape in (
        ("sfm-benign-0/1-130.dcm", "L", (4432, 2864)),
        ("sfm-malign-0/1-282.dcm", "R", (4688, 2592)),
    ):
        url = str(real_data / "cbis-ddsm-dicom" / name)
        found = dicom.header(url)
        assert (found.laterality, found.view, found.spacing_mm, found.unsuitable) == (side, "CC", 0, "")
        pixels = dicom.read(url)
        assert pixels.shape == shape
        assert pixels.max() > 0.8


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"BreastImplantPresent": "YES"}, "a breast with an implant"),
        ({"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"]}, "a synthetic image"),
        ({"ImageType": ["DERIVED", "PRIMARY", "", "STEREO_PLUS"]}, "an image of a stereotactic biopsy"),
        ({"PaddleDescription": "SPOT COMPRESSION"}, "spot compression"),
        ({"BodyPartExamined": "SPECIMEN"}, "a specimen"),
        ({"BodyPartExamined": "HAND"}, "body part HAND, not a breast"),
        ({"QualityControlImage": "YES"}, "a test image"),
        ({"SeriesDescription": "PHANTOM QC"}, "a test image"),
    ],
)
def test_what_is_no_standard_view_says_so_and_can_be_overruled(facts, reason):
    dataset = mammogram(RAMP, **facts)
    assert header_of(dataset).unsuitable.startswith(reason)
    with pytest.raises(ImageError, match=reason):
        dicom.mammogram(written(dataset), "here")
    header, pixels = dicom.mammogram(written(dataset), "here", any_kind=True)
    assert header.unsuitable.startswith(reason)
    assert pixels.shape == RAMP.shape


@pytest.fixture
def odd_values(monkeypatch) -> None:
    """Let pydicom make files of values that the standard does not allow."""
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.IGNORE)


@pytest.mark.parametrize(
    "facts",
    [
        {"BreastImplantPresent": "NO"},
        {"BodyPartExamined": "Breast"},
        {"ImageType": ["DERIVED", "PRIMARY"]},
        {"SeriesDescription": "SCREENING MLO"},
        {"PaddleDescription": "18X24 STANDARD"},
        {"Modality": "mg"},
        {"PhotometricInterpretation": "monochrome2"},
    ],
)
def test_a_standard_view_is_suitable_however_it_is_written(facts, odd_values):
    dataset = mammogram(RAMP, **facts)
    assert header_of(dataset).unsuitable == ""
    np.testing.assert_array_equal(pixels_of(dataset), pixels_of(mammogram(RAMP)))


@pytest.mark.parametrize(
    ("facts", "spacing_mm"),
    [
        ({"ImagerPixelSpacing": [0, 0]}, 0.0),
        ({"ImagerPixelSpacing": [0, 0], "PixelSpacing": [0.2, 0.2]}, 0.2),
        ({"DistanceSourceToDetector": 660, "DistanceSourceToPatient": 600}, 0.1 / 1.1),
        ({"DistanceSourceToDetector": 660, "DistanceSourceToPatient": 0}, 0.1),
        (
            {
                "DistanceSourceToDetector": 660,
                "DistanceSourceToPatient": 600,
                "EstimatedRadiographicMagnificationFactor": 1.05,
            },
            0.1 / 1.05,
        ),
    ],
)
def test_zeros_say_nothing_and_distances_say_the_magnification(facts, spacing_mm):
    assert header_of(mammogram(RAMP, **facts)).spacing_mm == pytest.approx(spacing_mm)


@pytest.mark.parametrize(
    ("side", "view", "found"),
    [
        ("left", "oblique", ("L", "MLO")),
        ("B", "RMLO", ("", "MLO")),
        (" r", "cc", ("R", "CC")),
        ("U", "ODD", ("", "ODD")),
    ],
)
def test_sides_and_views_in_other_words(side, view, found, odd_values):
    header = header_of(mammogram(RAMP, ImageLaterality=side, ViewPosition=view))
    assert (header.laterality, header.view) == found


def test_a_file_without_preamble_and_meta_is_read():
    buffer, dataset = io.BytesIO(), mammogram(RAMP)
    del dataset.file_meta
    dataset.preamble = None
    dcmwrite(buffer, dataset, implicit_vr=True, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(dicom.mammogram(buffer.getvalue(), "here")[1], pixels_of(mammogram(RAMP)))


def test_jpeg_of_12_bits_is_read():
    """The truth is the lossy code of imagecodecs, at its best: a grey or two off."""
    dataset, values = mammogram(RAMP.astype(np.uint16) % 4096, bits=12), RAMP.astype(np.uint16) % 4096
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.51"
    dataset.PixelData = encapsulate([imagecodecs.jpeg8_encode(values, level=100, bitspersample=12)])
    dataset["PixelData"].is_undefined_length = True
    found = dicom.mammogram(written(dataset), "here")[1] * 4095
    assert np.abs(found - values).max() <= 4


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"ImageLaterality": "L", "Laterality": "R"}, "ImageLaterality L, Laterality R"),
        ({"ImageLaterality": "R", "PatientOrientation": ["A", "FR"]}, "ImageLaterality R, PatientOrientation L"),
        ({"ImageLaterality": "L", "PatientOrientation": ["A", "FR"]}, ""),
        ({}, ""),
    ],
)
def test_a_header_that_contradicts_itself_about_the_side_says_so(facts, sentence):
    found = header_of(mammogram(RAMP, **facts)).contradiction
    assert found.endswith(sentence)
    assert bool(found) == bool(sentence)


@pytest.mark.parametrize(
    ("vr", "value", "spacing_mm"),
    [
        ("DS", "0.1\\0.1", 0.1),
        ("UT", "0.1\\0.1", 0.1),
        ("LO", ["0.1", "0.1"], 0.1),
        ("FD", [0.1, 0.1], 0.1),
        ("DS", "0\\0", 0),
        ("DS", "0.4", 0),
        ("DS", "-1\\-1", 0),
        ("UT", "unknown", 0),
        ("FD", [np.nan, np.nan], 0),
        ("DS", "70\\70", 0),
    ],
)
@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing"])
def test_a_spacing_of_any_type_is_read_and_an_impossible_one_named(odd_values, keyword, vr, value, spacing_mm):
    dataset = mammogram(RAMP, ImagerPixelSpacing=None)
    dataset[keyword] = DataElement(tag_for_keyword(keyword), vr, value)
    found = header_of(dataset)
    assert found.spacing_mm == pytest.approx(spacing_mm)
    assert found.spacing_fault == ("" if spacing_mm else f"{keyword} is no two distances between 0 and 10 mm")


@pytest.mark.parametrize(
    ("orientation", "wall"),
    [(["A", "FR"], "left"), (["P", "FL"], "right"), (["AH", "L"], "left"), (["R", "F"], ""), ([], "")],
)
def test_the_chest_wall_is_behind(orientation, wall):
    assert header_of(mammogram(RAMP, PatientOrientation=orientation)).wall == wall
