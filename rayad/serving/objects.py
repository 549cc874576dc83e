"""What a detector says of a DICOM image, as DICOM: objects of the same patient and study that refer to the image.

sc   Secondary Capture (PS3.3, A.8.1): the image under its heatmap, in colour
seg  Segmentation (A.51): the pixels of the marked places
sr   Comprehensive SR (A.35.3) of PS3.16, TID 1500: scores, p-values, the findings with their places
pm   Parametric Map (A.75): the healthy quantile of every pixel, where the image has a place in space

All have the image's own pixel matrix, a series each, and UIDs that follow from image, detector and kind: the same
scoring twice gives the same instance. Patient and study are those of the image; nothing else of the patient is added.
"""

import copy
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType
from typing import Any, Literal, get_args

import highdicom as hd
import numpy as np
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from jaxtyping import Int, UInt8
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.sr.codedict import codes
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid
from scipy import ndimage

from rayad.arrays import Image, Mask
from rayad.errors import ImageError
from rayad.evaluation import figures
from rayad.heatmaps.answers import Answer, DetectorName, Finding
from rayad.heatmaps.judgement import Judgement
from rayad.imaging.dicom import explained
from rayad.serving import RESEARCH_USE

Element = DataElement | RawDataElement
Kind = Literal["sc", "seg", "sr", "pm"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""A report (sr) comes last: where it is stored, the others are."""
SCHEMA = 1
"""Of the objects' content; another one gives other UIDs."""
MANUFACTURER = "rayad"
"""(0008,0070) of every object."""
UNSCORED = -1.0
"""In a parametric map: pixels that have no score (0028,0122)."""

_SERIES = {
    "sc": "rayad heatmap, research use only, not for diagnosis",
    "seg": "rayad marked places, research use only, not for diagnosis",
    "sr": "rayad findings, research use only, not for diagnosis",
    "pm": "rayad healthy quantile, research use only, not for diagnosis",
}
"""(0008,103E), at most 64 characters (PS3.5, 6.2)."""
_COLOURS = (
    f"Colour: the share of healthy places that score lower, from {figures.LOW:g} (none) to {figures.HIGH:g} (yellow), "
    "the same in every image. White: outline of the marked places."
)
_SCHEME = "99RAYAD"
_NAMES = {
    "score": "Anomaly score",
    "p_value": "p-value",
    "healthy_quantile": "Healthy quantile",
    "p_value_floor": "Smallest p-value of the calibration",
    "calibration_patients": "Healthy patients of the calibration",
    "findings_total": "Marked regions",
}
"""Measurements without a code in PS3.16, by their names in the HTTP API."""
_BREAST = CodedConcept("76752008", "SCT", "Breast")
_MAMMOGRAPHY = CodedConcept("71651007", "SCT", "Mammography")
_SIDES = {"R": CodedConcept("24028007", "SCT", "Right"), "L": CodedConcept("7771000", "SCT", "Left")}
_AI = CodedConcept("123110", "DCM", "Artificial Intelligence")
_FROM = CodedConcept("121322", "DCM", "Source image for image processing operation")
_PATIENT = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)
"""Of patient and study what every object has, empty where the source has none (type 2)."""
_CHARACTERS = "SpecificCharacterSet"
_TEXTS = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")
"""Kinds of value that it is said for (PS3.5, 6.1.2)."""
_GEOMETRY = ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness")


def uid(source: str, sha256: str, kind: Kind, settings: Mapping[str, str] = MappingProxyType({})) -> str:
    """The SOP instance UID of an object (PS3.5, 9).

    Args:
        source: SOP instance UID of the image.
        sha256: of the detector.
        settings: of the scoring, those that are not the defaults.
    """
    return generate_uid(entropy_srcs=["rayad", str(SCHEMA), source, sha256, kind, *_flat(settings)])


def objects(
    source: Dataset,
    pixels: Image,
    judged: Judgement,
    detector: DetectorName,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> dict[Kind, Dataset]:
    """The objects of an image that was scored.

    Where nothing is marked there is no "seg": a segmentation has at least one segment with a pixel; the report says so.
    "pm" needs a frame of reference, position and orientation, which mammograms rarely have.

    Args:
        source: the image's attributes; its pixels are not looked at.
        pixels: the image as it was scored, see `rayad.imaging.dicom.decode`.
        settings: see `uid`.

    Raises:
        ImageError: the source is no DICOM image of one frame, of another size than what was scored, or has attributes
            that cannot be carried over.
    """
    name = f"DICOM instance {source.get('SOPInstanceUID', 'without UID')}"
    with explained(name):
        _check(source, judged)
        texts = _texts(source)
        work = _Work(_plain(source, judged), judged, detector, MappingProxyType(dict(settings)))
        datasets: dict[Kind, Dataset] = {"sc": _capture(work, pixels)}
        if (mask := work.mask).any():
            datasets["seg"] = _segmentation(work, mask)
        if _in_space(source):
            datasets["pm"] = _map(work)
        datasets["sr"] = _report(work)
        for kind, dataset in datasets.items():
            _carry(texts, work.source, dataset)
            _finish(dataset, source, work, kind)
        return datasets


def to_bytes(dataset: Dataset) -> bytes:
    """The file (PS3.10): preamble, file meta information, data set."""
    buffer = io.BytesIO()
    with explained(f"DICOM instance {dataset.get('SOPInstanceUID', 'without UID')}"):
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Work:
    """What every object is made of."""

    source: Dataset
    """See `_plain`."""
    judged: Judgement
    by: DetectorName
    asked: Mapping[str, str]

    def facts(self, kind: Kind) -> dict[str, Any]:
        """What the constructors of highdicom want of instance, series and equipment."""
        instance = uid(self.source.SOPInstanceUID, self.by.sha256, kind, self.asked)
        return {
            "sop_instance_uid": instance,
            "series_instance_uid": generate_uid(entropy_srcs=["rayad", "series", instance]),
            "series_number": 9001 + KINDS.index(kind),
            "instance_number": 1,
            "series_description": _SERIES[kind],
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.by.name[:64],
            "device_serial_number": self.by.sha256[:64],
            "software_versions": f"rayad {metadata.version('rayad')}",
        }

    @property
    def side(self) -> str:
        """R, L or whatever the image says, (0020,0062) or (0020,0060); "" where it does not."""
        return str(self.source.get("ImageLaterality") or self.source.get("Laterality") or "")

    @property
    def breast(self) -> bool:
        return self.source.get("Modality") == "MG"

    @property
    def spacing(self) -> hd.PixelMeasuresSequence:
        """The thickness of a projection is that of the compressed breast."""
        mm = self.judged.spacing_mm
        return hd.PixelMeasuresSequence(pixel_spacing=(mm, mm), slice_thickness=self.thickness_mm or 1.0)

    @property
    def thickness_mm(self) -> float:
        """0 where nothing says it."""
        return float(self.source.get("SliceThickness") or self.source.get("BodyPartThickness") or 0)

    @property
    def cells(self) -> tuple[Int[np.ndarray, " h"], Int[np.ndarray, " w"]]:
        """Of each row and column of pixels the row and column of the grid; the grid's size beyond its last cell."""
        (height, width), places, step = self.judged.shape, self.judged, self.judged.step_mm / self.judged.spacing_mm
        return _cells(places.rows, height, step), _cells(places.cols, width, step)

    def spread(self, grid: np.ndarray, beyond: float) -> np.ndarray:
        """The value of each pixel's place."""
        padded = np.pad(grid, (0, 1), constant_values=beyond)
        return padded[np.ix_(*self.cells)]

    @property
    def mask(self) -> Mask:
        return self.spread(self.judged.mask, False)


def _cells(centres: np.ndarray, size: int, step: float) -> np.ndarray:
    """Of each pixel along a side the place in whose square its centre lies.

    The squares touch and the first begins at the image's edge (`scoring.dense.places`): their side is the distance of
    the places, which resampling makes a fraction of a pixel longer or shorter than asked.
    """
    count = len(centres)
    side = (float(centres[-1]) - float(centres[0])) / (count - 1) if count > 1 else step
    return np.minimum(((np.arange(size) + 0.5) / side).astype(np.int64), count)


def _flat(settings: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in sorted(settings.items())]


def _check(source: Dataset, judged: Judgement) -> None:
    for keyword in ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not source.get(keyword):
            raise ImageError(f"an image with {keyword} expected, to refer to")
    if source.SOPClassUID.name == source.SOPClassUID:
        raise ImageError("an image of a SOP class of the standard expected, not of a private one")
    rows, columns, frames = (int(source.get(k) or d) for k, d in (("Rows", 0), ("Columns", 0), ("NumberOfFrames", 1)))
    if not rows or not columns:
        raise ImageError("no image, so there is nothing to draw on")
    if frames != 1:
        raise ImageError(f"an image of one frame expected, not of {frames}")
    if (rows, columns) != judged.shape:
        raise ImageError(f"an image of {judged.shape[0]} x {judged.shape[1]} px was scored, not of {rows} x {columns}")


def _texts(source: Dataset) -> dict[BaseTag, Element]:
    """Patient, study and other texts with their character set, as the bytes of the file where none was looked at.

    Decoded and encoded again, a name or an id of bytes that its character set does not have would be another one.
    """
    always = [tag_for_keyword(keyword) for keyword in (*_PATIENT, _CHARACTERS)]
    elements = {tag: source.get_item(tag) for tag in tuple(source.keys())}
    return {tag: copy.deepcopy(element) for tag, element in elements.items() if tag in always or _vr(element) in _TEXTS}


def _vr(element: Element) -> str:
    """A file of implicit VR does not say it; "" where nobody knows it."""
    return element.VR or (dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else "")


def _carry(texts: Mapping[BaseTag, Element], plain: Dataset, dataset: Dataset) -> None:
    """Patient and study of the source into an object, and again what else it has from there.

    What rayad writes itself is ASCII, and so the same in every character set.
    """
    dataset.pop(_CHARACTERS, None)
    correct_ambiguous_vr(dataset, True)  # which writing would do, and encode every text again
    for tag, element in texts.items():
        if keyword_for_tag(tag) not in (*_PATIENT, _CHARACTERS) and dataset.get(tag) != plain.get(tag):
            continue
        is_raw = isinstance(element, RawDataElement)
        dataset[tag] = element._replace(VR=_vr(element)) if is_raw else element
    dataset.set_original_encoding(False, True, dataset._character_set)  # so that bytes are written as they are


def _plain(source: Dataset, judged: Judgement) -> Dataset:
    """The source as highdicom takes it: without pixels, with patient and study left empty, in space or not.

    It refuses dates and sexes of other forms than today's; `_finish` carries them over as they are.
    """
    plain = Dataset({element.tag: copy.deepcopy(element) for element in source if element.tag.group < 0x7FE0})
    for keyword in _PATIENT:
        setattr(plain, keyword, "")
    plain.pop(_CHARACTERS, None)  # `_carry` brings it, whatever it is
    if _in_space(source):
        plain.PixelSpacing = [judged.spacing_mm] * 2  # mammograms call it ImagerPixelSpacing
    else:
        for keyword in (k for k in _GEOMETRY if k in plain):
            delattr(plain, keyword)
    return plain


def _in_space(source: Dataset) -> bool:
    """Does the image say where in the patient it is? Many mammograms have a frame of reference and nothing in it."""
    return all(source.get(keyword) for keyword in _GEOMETRY)


def _finish(dataset: Dataset, source: Dataset, work: _Work, kind: Kind) -> None:
    """Side and orientation as they are in the source, and that this is research."""
    dataset.preamble = b"\0" * 128
    if kind == "sr":
        return
    if work.side and kind != "seg":  # a segment has its own (PS3.3, C.7.3.1, Laterality)
        dataset.Laterality = work.side
    dataset.PatientOrientation = _orientation(source)
    dataset.ImageComments = RESEARCH_USE + (f" {_COLOURS}" if kind == "sc" else "")
    if "BodyPartExamined" in source:
        dataset.BodyPartExamined = source.BodyPartExamined
    if "BurnedInAnnotation" in source:
        dataset.BurnedInAnnotation = source.BurnedInAnnotation


def _orientation(source: Dataset) -> list[str] | None:
    """Where rows and columns lead to (0020,0020); none where old archives say CC or MLO instead."""
    directions = [str(value) for value in source.get("PatientOrientation") or []]
    return (
        directions
        if len(directions) == 2 and all(re.fullmatch("[LRAPHF]{1,3}", value) for value in directions)
        else None
    )


def _capture(work: _Work, pixels: Image) -> Dataset:
    """JPEG 2000 without loss, a twentieth of the size."""
    capture = hd.sc.SCImage.from_ref_dataset(
        work.source,
        pixel_array=_overlaid(work, pixels),
        photometric_interpretation="YBR_RCT",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("A", "F"),  # asked for by highdicom; `_finish` gives the source's, or none
        pixel_spacing=(work.judged.spacing_mm, work.judged.spacing_mm),  # type: ignore[reportArgumentType]
        transfer_syntax_uid=JPEG2000Lossless,
        **work.facts("sc"),
    )
    capture.SourceImageSequence = [_reference(work.source)]
    capture.DerivationDescription = f"Heatmap of {work.by.name}, sha256 {work.by.sha256}"
    return capture


def _reference(source: Dataset) -> Dataset:
    """An item of SourceImageSequence (PS3.3, 10.3 and C.7.6.1)."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [_FROM]
    return item


def _overlaid(work: _Work, pixels: Image) -> UInt8[np.ndarray, "h w 3"]:
    """The image under its heatmap, the outline of what is marked, and the words of research use."""
    grey = pixels if pixels.ndim == 2 else pixels.mean(2)
    grey = np.clip(grey / max(1e-6, float(np.quantile(grey, 0.999))), 0, 1)
    colours = figures.color_map()(figures.color_norm()(np.ma.masked_invalid(work.judged.healthy_quantile)))
    alpha = work.spread(colours[..., 3].astype(np.float32), 0)
    overlay = np.empty((*grey.shape, 3), np.uint8)
    for channel in range(3):
        colour = work.spread(colours[..., channel].astype(np.float32), 0)
        overlay[..., channel] = np.rint(255 * (grey + alpha * (colour - grey)))
    overlay[_rim(work.mask, max(1, round(0.2 / work.judged.spacing_mm)))] = 255
    return _worded(overlay)


def _rim(mask: Mask, width: int) -> Mask:
    """The pixels of the mask within so many px of its outside."""
    return mask & (ndimage.minimum_filter(mask.view(np.uint8), size=2 * width + 1, mode="nearest") == 0)


def _worded(overlay: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """RESEARCH_USE along the lower edge, over its whole width."""
    height, width = overlay.shape[:2]
    picture = Picture.fromarray(overlay)
    size = max(6.0, 1.8 * width / len(RESEARCH_USE))
    position, stroke = (width / 2, height - size / 5), {"stroke_width": round(size / 8), "stroke_fill": "black"}
    font = ImageFont.load_default(size)
    ImageDraw.Draw(picture).text(position, RESEARCH_USE, fill="white", font=font, anchor="md", **stroke)
    return np.array(picture)


def _segmentation(work: _Work, mask: Mask) -> Dataset:
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Marked places",
        segmented_property_category=CodedConcept("309825002", "SCT", "Spatial and Relational Concept"),
        segmented_property_type=CodedConcept("111099", "DCM", "Selected region"),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=work.by.name[:64], family=_AI, version=work.by.sha256[:64], source=MANUFACTURER
        ),
        anatomic_regions=[_BREAST] if work.breast else None,
    )
    segmentation = hd.seg.Segmentation(
        source_images=[work.source],
        pixel_array=mask.astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[description],
        pixel_measures=work.spacing,
        content_description="Places above 99 of 100 healthy ones. Research use only",
        content_label="MARKED",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **work.facts("seg"),
    )
    if not work.thickness_mm:  # readers want all of it or nothing, and the source has the spacing
        del segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    return segmentation


def _map(work: _Work) -> Dataset:
    quantile = np.nan_to_num(work.judged.healthy_quantile.astype(np.float32), nan=UNSCORED)
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="QUANTILE",
        lut_explanation="Share of healthy places that score lower",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
    )
    parametric_map = hd.pm.ParametricMap(
        source_images=[work.source],
        pixel_array=work.spread(quantile, UNSCORED).astype(np.float32),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
        pixel_measures=work.spacing,
        content_description="Healthy quantile. Research use only, not for diagnosis",
        content_label="QUANTILE",
        **work.facts("pm"),
    )
    parametric_map.FloatPixelPaddingValue = parametric_map.FloatPixelPaddingRangeLimit = UNSCORED
    return parametric_map


def _report(work: _Work) -> Dataset:
    """TID 1500, with a group of the whole image (TID 1501) and a group a finding, at its peak (TID 1410)."""
    answer = work.judged.answer(work.by, {})
    findings = [_finding(work, number, finding) for number, finding in enumerate(answer.findings, 1)]
    context = hd.sr.ObservationContext(observer_device_context=_observer(work))
    report = hd.sr.MeasurementReport(
        observation_context=context,
        procedure_reported=_MAMMOGRAPHY,
        imaging_measurements=[_whole(work, answer), *findings],
        title=codes.DCM.ImagingMeasurementReport,
    )
    for text in (RESEARCH_USE, _summary(answer)):
        report[0].ContentSequence.append(_comment(text))
    return hd.sr.ComprehensiveSR(
        evidence=[work.source],
        content=report[0],
        is_complete=True,
        coding_schemes=[CodingSchemeIdentificationItem(_SCHEME, name="rayad", responsible_organization="rayad")],
        **work.facts("sr"),
    )


def _comment(text: str) -> hd.sr.TextContentItem:
    return hd.sr.TextContentItem(
        name=codes.DCM.Comment, value=text, relationship_type=hd.sr.RelationshipTypeValues.CONTAINS
    )


def _summary(answer: Answer) -> str:
    verdict = f" The image is {answer.verdict}: abnormal is a score {answer.rule}." if answer.verdict else ""
    doubts = verdict + "".join(f" Doubtful: {doubt.sentence}." for doubt in answer.doubts)
    if not answer.findings_total:
        return f"Nothing is marked: no place scores above 99 of 100 places of healthy patients.{doubts}"
    return (
        f"{answer.findings_total} regions are marked, whose places score above 99 of 100 places of healthy patients; "
        f"the {len(answer.findings)} with the highest scores are listed, each at its highest place.{doubts}"
    )


def _observer(work: _Work) -> hd.sr.ObserverContext:
    """The detector as device (TID 1004)."""
    attributes = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=["rayad", "detector", work.by.sha256]),
        name=work.by.name,
        manufacturer_name=MANUFACTURER,
        model_name=f"rayad {metadata.version('rayad')}",
        serial_number=work.by.sha256,
    )
    return hd.sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=attributes)


def _whole(work: _Work, answer: Answer) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    source = hd.sr.SourceImageForMeasurementGroup(work.source.SOPClassUID, work.source.SOPInstanceUID)
    names = ("score", "p_value", "p_value_floor", "calibration_patients", "findings_total")
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        source_images=[source],
        measurements=[_number(name, getattr(answer, name)) for name in names],
        **_group(work, "image"),
    )


def _finding(work: _Work, number: int, finding: Finding) -> Any:
    """A point in px from the outer corner of the first pixel, whose centre is at 0.5 (PS3.3, C.18.6.1.2)."""
    image = hd.sr.SourceImageForRegion(work.source.SOPClassUID, work.source.SOPInstanceUID)
    peak = np.array([[finding.column + 0.5, finding.row + 0.5]])
    measurements = [_number(name, getattr(finding, name)) for name in ("score", "p_value", "healthy_quantile")]
    size = hd.sr.Measurement(name=codes.SCT.Area, value=finding.size_mm2, unit=codes.UCUM.SquareMillimeter)
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        referenced_region=hd.sr.ImageRegion(hd.sr.GraphicTypeValues.POINT, peak, image),
        measurements=[*measurements, size],
        **_group(work, f"finding {number}"),
    )


def _group(work: _Work, name: str) -> dict[str, Any]:
    """What a group of measurements is of, and whose."""
    identity = generate_uid(entropy_srcs=[uid(work.source.SOPInstanceUID, work.by.sha256, "sr", work.asked), name])
    site = hd.sr.FindingSite(_BREAST, laterality=_SIDES.get(work.side)) if work.breast else None
    return {
        "tracking_identifier": hd.sr.TrackingIdentifier(uid=identity, identifier=name),
        "finding_type": _code("unusual_place", "Unusual place") if name != "image" else _code("image", "Whole image"),
        "algorithm_id": hd.sr.AlgorithmIdentification(name=work.by.name, version=work.by.sha256),
        "finding_sites": [site] if site else None,
    }


def _number(name: str, value: float) -> hd.sr.Measurement:
    return hd.sr.Measurement(name=_code(name, _NAMES[name]), value=value, unit=codes.UCUM.NoUnits)


def _code(value: str, meaning: str) -> CodedConcept:
    """Private to rayad; a code value has at most 16 characters (0008,0100)."""
    return CodedConcept(value.upper()[:16], _SCHEME, meaning)
