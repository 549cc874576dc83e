"""DICOM mammograms: full-depth pixels with dense tissue bright, their spacing, side and view.

Attributes are those of PS3.3: Image Pixel (C.7.6.3), Modality LUT (C.11.1), Mammography Image (C.8.11.7), DX Image
(C.8.11.3). Windows and VOI LUTs are for looking and are ignored. Transfer syntaxes: native, RLE, JPEG lossless,
JPEG-LS, JPEG 2000, HTJ2K, JPEG baseline and extended.
"""

import contextlib
import io
import logging
import math
import posixpath
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import imagecodecs
import numpy as np
import pydicom
from pydicom import Dataset, config
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import _read_file_meta_info, read_dataset, read_preamble
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    RLELossless,
)

from rayad import bounds, storage
from rayad.arrays import Pixels
from rayad.errors import ImageError
from rayad.imaging import codestream, dicomweb, raster, views
from rayad.imaging.decoder import apart
from rayad.imaging.plausibility import Doubt

SUFFIXES = (".dcm", ".dicom", ".dic", ".ima", "")
"""Endings by which a folder's files are looked into; many archives give none, or call files by their UID."""
ForProcessing = Literal["refuse", "convert"]
"""What is done with raw images of the detector, which are not made for looking."""

HEADER_BYTES = 16_000_000
"""Of a header; those of mammograms have some kilobytes, with overlays some megabytes."""
SEQUENCE_BYTES = 1_000_000
"""Of a sequence; a table of 65,536 values has 131,072."""
HEADER_READS = 200_000
"""pydicom asks twice for an element, once for an item."""
ROWS = 64
"""Of pixels whose values are looked up at once: what the cache holds."""
RAW = "raw image (FOR PROCESSING)"
"""Why a raw image is unsuitable, unless it is converted."""

LARGEST_SPACING_MM = 10.0

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_VIEWS = {
    "CC": ("399162004", "R-10242"),
    "MLO": ("399368009", "R-10226"),
    "ML": ("399260004", "R-10224"),
    "LM": ("399352003", "R-10228"),
    "LMO": ("399099002", "R-10230"),
    "XCCL": ("399265009", "R-1024A"),
    "XCCM": ("399273003", "R-1024B"),
    "FB": ("399011000", "R-10244"),
}
"""View -> its codes in SNOMED CT and SNOMED-RT (PS3.16, CID 4014)."""
_MAGNIFIED = ("399163009", "R-102D6")
_SPOT = ("399055006", "R-102D7")
_NO_STANDARD_VIEW = (
    ("BreastImplantPresent", "^YES$", "a breast with an implant"),
    ("QualityControlImage", "^(YES|BOTH)$", "a test image (QualityControlImage)"),
    ("SeriesDescription", r"\b(PHANTOM|QC|FLAT ?FIELD|ACR)\b", "a test image (SeriesDescription)"),
    ("ImageType", "GENERATED_2D", "a synthetic image (GENERATED_2D), not a projection"),
    ("ImageType", "^STEREO", "an image of a stereotactic biopsy"),
    ("BodyPartExamined", "SPECIMEN", "a specimen"),
    ("PaddleDescription", "SPOT|MAG", "spot compression"),
    ("ViewPosition", "SPOT|MAG", "spot compression"),
)
"""Attribute, words in it, and why such an image is none of a whole breast."""
_DAMAGE = (
    *(AttributeError, KeyError, IndexError, TypeError, ValueError, ArithmeticError, NotImplementedError, RuntimeError),
    *(EOFError, OSError, struct.error, zlib.error, InvalidDicomError, BytesLengthException, MemoryError),
)
"""What pydicom and its decoders raise over damaged files, found by flipping bytes."""


@dataclass(frozen=True)
class Header:
    """What a file says of its image, without patient's name, dates and numbers but for `patient_id`."""

    patient_id: str
    """(0010,0020); an identifier: it is hashed before it is written anywhere."""
    study: str
    """(0020,000D)."""
    series: str
    """(0020,000E)."""
    instance: str
    """(0008,0018)."""
    sop_class: str
    """(0008,0016)."""
    laterality: str
    """L, R or ""; (0020,0062), (0020,0060) or from the patient's orientation (0020,0020)."""
    view: str
    """CC, MLO, ML, ... or ""; (0018,5101), (0054,0220) or from the patient's orientation."""
    spacing_mm: float
    """At the breast, mm a pixel; 0 where no attribute says it. See `spacing_of`."""
    spacing_fault: str
    """Which attribute should say it and does not, or empty."""
    scanner: str
    """Manufacturer and model, (0008,0070) and (0008,1090)."""
    rows: int
    columns: int
    wall: str
    """At which edge of the picture the chest wall is by the patient's orientation: left, right or ""."""
    contradiction: str
    """What the header says of the side in two ways that do not agree, or empty."""
    unsuitable: str
    """Why a mammogram of the whole breast is not to be had from this file; "" if it is one."""


def doubts(header: Header) -> tuple[Doubt, ...]:
    """What a header has against its image, see rayad/imaging/plausibility.py."""
    sentences = {"kind": header.unsuitable, "side": header.contradiction}
    return tuple(Doubt(kind, sentence) for kind, sentence in sentences.items() if sentence)


def is_candidate(url: str) -> bool:
    """Does a file's name allow that it is DICOM?"""
    suffix = posixpath.splitext(url)[1].lower()
    return suffix in SUFFIXES or suffix[1:].isdigit()


def is_web(url: str) -> bool:
    """Is it an instance on a DICOMweb server?"""
    return dicomweb.is_web(url)


def is_dicom(head: bytes) -> bool:
    """Do the bytes of a file begin as DICOM does: with its mark, or at once with an element of group 2 or 8?"""
    return head[128:132] == b"DICM" or (head[:2] in (b"\x02\0", b"\x08\0") and head[3:4] == b"\0" and len(head) > 132)


def header(url: str) -> Header:
    """What the attributes say; the pixels are not read.

    Raises:
        ImageError: not DICOM, or a damaged header.
        StorageError: the file cannot be read.
    """
    if dicomweb.is_web(url):
        with explained(url):
            return _header(dicomweb.metadata(url))
    with storage.reading(url) as file, explained(url):
        return _header(_open(file, url, stop_before_pixels=True))


def header_of(data: bytes, name: str) -> Header:
    """What the attributes in the bytes of a file say; errors call it by its name. ImageError as `header`."""
    with explained(name):
        return _header(_open(io.BytesIO(data), name, stop_before_pixels=True))


def attributes(data: bytes, name: str) -> Dataset:
    """The attributes in the bytes of a file, without the pixels; errors call it by its name. ImageError as `header`."""
    with explained(name):
        return _open(io.BytesIO(data), name, stop_before_pixels=True)


def read(url: str, for_processing: ForProcessing = "refuse") -> Pixels:
    """The image at full depth, see `decode`.

    Raises:
        ImageError: not DICOM, damaged, not one grey image, or one that is refused.
        StorageError: the file cannot be read.
    """
    return decode(read_bytes(url), url, for_processing)


def read_bytes(url: str) -> bytes:
    """A file, or an instance of a DICOMweb server as a file.

    Raises:
        ImageError: it is larger than an image's file may be.
        StorageError: it cannot be read.
    """
    if not dicomweb.is_web(url):
        return raster.read_bytes(url)
    buffer = io.BytesIO()
    dicomweb.instance(url).save_as(buffer)
    return buffer.getvalue()


def decode(data: bytes, name: str, for_processing: ForProcessing = "refuse") -> Pixels:
    """float32 in [0, 1], 0 the darkest and 1 the brightest value that the stored bits can say, padding 0.

    Stored values go through the modality LUT or rescale, MONOCHROME1 is turned around; so dense tissue is bright. A raw
    image (PresentationIntentType FOR PROCESSING) is refused, or its logarithm is taken and turned so that tissue is
    bright (PS3.3, C.8.11.3.1.2).

    Raises:
        ImageError: as `read`, or above the bounds.
    """
    return apart("dicom:parsed", data, name, for_processing, False)[1]


def mammogram(data: bytes, name: str, any_kind: bool = False) -> tuple[Header, Pixels]:
    """The header and the pixels, see `decode`, in the bytes of a file; ImageError too if it shows no whole breast.

    Args:
        any_kind: also of one that shows none.
    """
    facts, pixels = apart("dicom:parsed", data, name, "refuse", not any_kind)
    return Header(**facts), pixels


def parsed(data: bytes, name: str, for_processing: ForProcessing, whole_breast: bool) -> tuple[dict[str, Any], Pixels]:
    """What `mammogram` and `decode` give, decoded in this process."""
    with explained(name):
        dataset = _open(io.BytesIO(data), name, stop_before_pixels=True)
        described = _header(dataset)
        if unsuitable := described.unsuitable if whole_breast else _no_image(dataset):
            raise ImageError(f"{name}: {unsuitable}")
        is_raw = dataset.get("PresentationIntentType", "") == "FOR PROCESSING"
        if is_raw and for_processing == "refuse":
            raise ImageError(f"{name}: a raw image (FOR PROCESSING); for_processing=convert takes its logarithm")
        dataset = _open(io.BytesIO(data), name)
        for table in (
            "ExtendedOffsetTable",
            "ExtendedOffsetTableLengths",
        ):  # of several frames; one could lead elsewhere
            if table in dataset:
                del dataset[table]
        dataset.PhotometricInterpretation = str(dataset.PhotometricInterpretation).upper()
        codestream.check(dataset)
        _check_length(dataset)
        stored = _stored(dataset)
        if stored.shape != (described.rows, described.columns):
            raise ImageError(f"{name}: pixels of {stored.shape} in a file of {described.rows} x {described.columns} px")
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated and int(stored.max()) >= 2 ** int(dataset.BitsStored):
            raise ImageError(f"{name}: values up to {stored.max()} in a file of {dataset.BitsStored} bits")
        return asdict(described), _scaled(dataset, stored, is_raw)


def _stored(dataset: Dataset) -> np.ndarray:
    """The stored values.

    Run lengths are decoded by the library that is compiled and yet checks every index, and refuses offsets that lead
    out of the frame. JPEG of 12 bits (PS3.5, A.4.1) needs another decoder than pydicom's, which know 8.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == RLELossless:
        return pixel_array(dataset, raw=True, decoding_plugin="pylibjpeg")
    if syntax != JPEGExtended12Bit or int(dataset.BitsAllocated) <= 8:
        return pixel_array(dataset, raw=True)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    return np.asarray(imagecodecs.jpeg_decode(frame))


def _check_length(dataset: Dataset) -> None:
    """ImageError if native pixels are followed by another row or more: then the image may begin anywhere."""
    syntax = dataset.file_meta.TransferSyntaxUID if hasattr(dataset, "file_meta") else None
    if syntax and syntax.is_encapsulated:
        return
    row = dataset.Columns * dataset.BitsAllocated // 8
    if len(dataset.PixelData) >= (dataset.Rows + 1) * row:
        raise ImageError(
            f"{len(dataset.PixelData):,} bytes of pixels in a file of {dataset.Rows} x {dataset.Columns} px"
        )


def _scaled(dataset: Dataset, stored: np.ndarray, is_raw: bool) -> Pixels:
    """Stored values in [0, 1]; what each becomes is worked out once for all pixels that have it."""
    low, high = _range(dataset)
    least, most = _ends(dataset)
    values = np.arange(least, most + 1).astype(stored.dtype)
    scaled = (_rescaled(dataset, values) - low) / (high - low)
    if is_raw:
        scaled = _as_for_looking(dataset, scaled, high - low)
    elif dataset.PhotometricInterpretation == "MONOCHROME1":
        scaled = 1 - scaled
    scaled[_padding(dataset, values)] = 0
    table, pixels = np.clip(scaled, 0, 1).astype(np.float32), np.empty(stored.shape, np.float32)
    for start in range(0, len(stored), ROWS):
        rows = slice(start, start + ROWS)
        np.take(table, stored[rows].astype(np.intp) - least, out=pixels[rows], mode="clip")
    return pixels


def spacing_of(dataset: Dataset) -> float:
    """mm a pixel at the breast; 0 where nothing says it.

    PixelSpacing (0028,0030), if it was corrected or calibrated; ImagerPixelSpacing (0018,1164) at the detector is
    divided by EstimatedRadiographicMagnificationFactor (0018,1114), or by the distance of the source to the detector
    (0018,1110) over that to the patient (0018,1111); NominalScannedPixelSpacing (0018,2010) of a film. What is no two
    distances, as 0 and 0, says nothing.

    Raises:
        ImageError: pixels that are not squares.
    """
    pixel, imager, film = (_distances(dataset, name) for name in _SPACINGS)
    at_detector = imager or film
    corrected = pixel and (not imager or "PixelSpacingCalibrationType" in dataset or pixel != imager)
    distances, divisor = (pixel, 1.0) if corrected else (at_detector or pixel, _magnification(dataset))
    if not distances:
        return 0.0
    row_mm, column_mm = (value / divisor for value in distances)
    if abs(row_mm - column_mm) > 0.01 * row_mm:
        name = next(name for name in _SPACINGS if _distances(dataset, name) == distances)
        raise ImageError(f"{name}: square pixels expected, not {row_mm:g} by {column_mm:g} mm")
    return row_mm


def _spacing_fault(dataset: Dataset) -> str:
    """Which attribute should say the spacing, and what it says instead; empty: none is there that does not."""
    faulty = (name for name in _SPACINGS if dataset.get(name) is not None and not _distances(dataset, name))
    return next((f"{name} is no two distances between 0 and {LARGEST_SPACING_MM:g} mm" for name in faulty), "")


def _distances(dataset: Dataset, keyword: str) -> list[float]:
    """Two distances in mm, whatever their type of value; none where the attribute is not there, or says others."""
    value: Any = dataset.get(keyword)
    if isinstance(value, str):
        value = value.split("\\")
    elif value is not None and not isinstance(value, Sequence | MultiValue):
        value = [value]
    try:
        distances = [float(text) for text in value or ()]
    except (TypeError, ValueError):
        return []
    is_valid = len(distances) == 2 and all(0 < distance < LARGEST_SPACING_MM for distance in distances)
    return distances if is_valid else []


def _magnification(dataset: Dataset) -> float:
    """How much larger the breast is at the detector."""
    stated = float(dataset.get("EstimatedRadiographicMagnificationFactor") or 0)
    detector, patient = (
        float(dataset.get(name) or 0) for name in ("DistanceSourceToDetector", "DistanceSourceToPatient")
    )
    factor = stated or (detector / patient if patient else 1.0)
    return factor if 1 <= factor < 10 else 1.0


def _header(dataset: Dataset) -> Header:
    laterality, view = _orientation(dataset)
    unsuitable = _no_image(dataset) or _not_whole_breast(dataset)
    return Header(
        patient_id=str(dataset.get("PatientID", "")),
        study=str(dataset.get("StudyInstanceUID", "")),
        series=str(dataset.get("SeriesInstanceUID", "")),
        instance=str(dataset.get("SOPInstanceUID", "")),
        sop_class=str(dataset.get("SOPClassUID", "")),
        laterality=_side(dataset) or laterality,
        view=_view(dataset) or view,
        spacing_mm=spacing_of(dataset),
        spacing_fault=_spacing_fault(dataset),
        scanner=" ".join(filter(None, (str(dataset.get(k) or "") for k in ("Manufacturer", "ManufacturerModelName")))),
        rows=int(dataset.get("Rows", 0) or 0),
        columns=int(dataset.get("Columns", 0) or 0),
        wall=_wall(dataset),
        contradiction=_contradiction(dataset, laterality),
        unsuitable=unsuitable,
    )


def _open(file: Any, name: str, *, stop_before_pixels: bool = False) -> Dataset:
    """The data set; some archives leave the preamble out, then there must at least be a SOP class."""
    deflated = _is_deflated(file, name)
    if deflated and stop_before_pixels:
        return _deflated_head(file, name)
    source = _Head(file, name) if stop_before_pixels else file
    return _checked(pydicom.dcmread(source, force=True, stop_before_pixels=stop_before_pixels), name)


def _checked(dataset: Dataset, name: str) -> Dataset:
    """The data set; ImageError where it is none of DICOM, or a sequence that is asked for has too many items.

    pydicom makes a data set of each item when the sequence is first looked at.
    """
    if "SOPClassUID" not in dataset:
        raise ImageError(f"{name}: not a DICOM file")
    meta = getattr(dataset, "file_meta", None) or FileMetaDataset()
    if "TransferSyntaxUID" not in meta:  # without a preamble: PS3.5, 10.1
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian
        dataset.file_meta = meta
    for keyword in ("ViewCodeSequence", "ModalityLUTSequence"):
        value = getattr(dataset.get_item(keyword), "value", None)
        if isinstance(value, bytes) and len(value) > SEQUENCE_BYTES:
            raise ImageError(f"{name}: {keyword} of more than {SEQUENCE_BYTES / 1e6:g} MB")
    return dataset


def _deflated_head(file: Any, name: str) -> Dataset:
    """The attributes of a deflated data set, of which no more is inflated than a header may have."""
    read_preamble(file, force=True)
    meta = _read_file_meta_info(file)
    head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), HEADER_BYTES)
    reader: Any = _Head(io.BytesIO(head), name)
    dataset = read_dataset(reader, False, True, stop_when=lambda tag, *_: tag >= _PIXELS)
    dataset.file_meta = FileMetaDataset(meta)
    return _checked(dataset, name)


_PIXELS = 0x7FE00008
"""The first tag of pixels of any kind."""


class _Head:
    """A file of which no more is read than a header may have: an element takes hundreds of bytes of memory."""

    def __init__(self, file: Any, name: str) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._file, self._name, self._left, self._reads = file, name, HEADER_BYTES, HEADER_READS

    def read(self, size: int = -1) -> bytes:
        """Bytes, as a file gives them."""
        data = self._file.read(size if 0 <= size <= self._left else self._left + 1)
        self._left -= len(data)
        self._reads -= 1
        if self._left < 0 or self._reads < 0:
            raise ImageError(f"{self._name}: a header of more than {HEADER_BYTES / 1e6:g} MB or 100,000 elements")
        return data


def _is_deflated(file: Any, name: str) -> bool:
    """Whether a data set is deflated (PS3.5, A.5); ImageError if it is more than the largest image.

    pydicom inflates all of it at once.
    """
    start = file.tell()
    read_preamble(file, force=True)
    deflated = _read_file_meta_info(file).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    if deflated:
        max_pixels = bounds.current().pixels
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        inflate.decompress(file.read(), 2 * max_pixels + HEADER_BYTES)
        if inflate.unconsumed_tail:
            raise ImageError(f"{name}: a deflated file of more pixels than bounds.pixels={max_pixels}")
    file.seek(start)
    return deflated


def _no_image(dataset: Dataset) -> str:
    """Why there is no single grey image in the file."""
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if dataset.get("SOPClassUID") == _TOMOSYNTHESIS:
        return f"tomosynthesis of {frames} slices, not a projection"
    rows, columns = int(dataset.get("Rows", 0) or 0), int(dataset.get("Columns", 0) or 0)
    if not rows or not columns:
        return f"no image ({_code(dataset, 'Modality')})"
    if frames > 1:
        return f"{frames} frames, not one image"
    if rows * columns > (max_pixels := bounds.current().pixels):
        return f"{rows} x {columns} pixels are more than bounds.pixels={max_pixels}"
    kind = str(dataset.get("PhotometricInterpretation", "") or "").upper()
    if kind not in _GREY or int(dataset.get("SamplesPerPixel", 1)) != 1:
        return f"not a grey image ({_code(dataset, 'PhotometricInterpretation')})"
    return ""


def _code(dataset: Dataset, keyword: str) -> str:
    """A code string for a message; a damaged header can hold anything there, a patient's name too."""
    value = str(dataset.get(keyword) or "")
    if not value:
        return f"no {keyword}"
    return value if re.fullmatch("[A-Z0-9_]{1,16}", value) else f"unreadable {keyword}"


def _not_whole_breast(dataset: Dataset) -> str:
    """Why a single grey image is not of a whole breast."""
    if str(dataset.get("Modality", "") or "").upper() not in ("MG", "CR", "DX", "OT", ""):
        return f"modality {_code(dataset, 'Modality')}, not a mammogram"
    if dataset.get("PresentationIntentType", "") == "FOR PROCESSING":
        return RAW
    for keyword, words, reason in _NO_STANDARD_VIEW:
        value = dataset.get(keyword)
        values = [value] if isinstance(value, str) else list(value or ())
        if any(re.search(words, str(text).upper()) for text in values):
            return reason
    if not re.search("BREAST|MAMM|^$", str(dataset.get("BodyPartExamined", "") or "").upper()):
        return f"body part {_code(dataset, 'BodyPartExamined')}, not a breast"
    codes = {code for view in dataset.get("ViewCodeSequence") or [] for code in _modifiers(view)}
    if codes & set(_MAGNIFIED) or float(dataset.get("EstimatedRadiographicMagnificationFactor") or 1) > 1.4:
        return "magnification view"
    return "spot compression" if codes & set(_SPOT) else ""


def _modifiers(view: Dataset) -> list[str]:
    return [str(modifier.get("CodeValue", "")) for modifier in view.get("ViewModifierCodeSequence") or []]


def _side(dataset: Dataset) -> str:
    return next((side for side in _sides(dataset).values() if side), "")


def _sides(dataset: Dataset) -> dict[str, str]:
    """The side by each attribute that says it."""
    sides = {}
    for keyword in ("ImageLaterality", "Laterality"):
        with contextlib.suppress(ValueError):  # B, U: of both or of none
            sides[keyword] = views.side(str(dataset.get(keyword, "") or ""))
    return sides


def _contradiction(dataset: Dataset, by_orientation: str) -> str:
    sides = {name: side for name, side in {**_sides(dataset), "PatientOrientation": by_orientation}.items() if side}
    if len(set(sides.values())) < 2:
        return ""
    return "the header contradicts itself about the side: " + ", ".join(
        f"{name} {side}" for name, side in sides.items()
    )


def _view(dataset: Dataset) -> str:
    position = str(dataset.get("ViewPosition", "") or "").strip().upper()
    if position:
        try:
            return views.view(position)[0]
        except ValueError:
            return position  # whatever it is: `inspect` has a row for it
    codes = {str(view.get("CodeValue", "")) for view in dataset.get("ViewCodeSequence") or []}
    return next((view for view, codes_of_view in _VIEWS.items() if codes & set(codes_of_view)), "")


def _orientation(dataset: Dataset) -> tuple[str, str]:
    """Side and view from where the image's columns lead to: F L in a right MLO view, L in a right CC view."""
    orientation = dataset.get("PatientOrientation") or []
    if len(orientation) != 2:
        return "", ""
    column_direction = str(orientation[1]).upper()
    towards = next((letter for letter in column_direction if letter in "LR"), "")
    laterality = {"L": "R", "R": "L"}.get(towards, "")
    if "H" in column_direction:  # upside down
        laterality = towards
    return laterality, (
        "MLO" if "F" in column_direction or "H" in column_direction else "CC"
    ) if column_direction else ""


def _wall(dataset: Dataset) -> str:
    """The edge that rows come from, if they lead to the front (A), or lead to, if that is the back (P)."""
    orientation = dataset.get("PatientOrientation") or []
    row_direction = str(orientation[0]).upper()[:1] if len(orientation) == 2 else ""
    return {"A": "left", "P": "right"}.get(row_direction, "")


def _range(dataset: Dataset) -> tuple[float, float]:
    """The lowest and highest value after the modality LUT or rescale that the stored bits can give."""
    ends = np.array(_ends(dataset))
    if "ModalityLUTSequence" in dataset:
        return 0.0, 2.0 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    slope, intercept = _rescale(dataset)
    low, high = sorted((slope * ends + intercept).tolist())
    if not (math.isfinite(high - low) and low < high):
        raise ImageError(
            f"RescaleSlope and RescaleIntercept must be numbers that tell values apart: {slope}, {intercept}"
        )
    return low, high


def _ends(dataset: Dataset) -> tuple[int, int]:
    """The lowest and highest value that the stored bits can say; ImageError where they are none or more than 16."""
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    if not 1 <= bits <= 16:
        raise ImageError(f"1 to 16 bits a pixel expected, not {bits}")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _rescale(dataset: Dataset) -> tuple[float, float]:
    """RescaleSlope (0028,1053) and RescaleIntercept (0028,1052)."""
    return float(dataset.get("RescaleSlope", 1) or 1), float(dataset.get("RescaleIntercept", 0) or 0)


def _rescaled(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    """Values after the modality LUT or rescale."""
    if "ModalityLUTSequence" in dataset:
        return np.asarray(apply_modality_lut(stored, dataset), np.float64)
    slope, intercept = _rescale(dataset)
    return stored * slope + intercept


def _as_for_looking(dataset: Dataset, scaled: np.ndarray, full: float) -> np.ndarray:
    """A raw image's logarithm, where it is not one yet, with tissue bright."""
    if dataset.get("PixelIntensityRelationship", "LIN") != "LOG":
        scaled = np.log1p(scaled * full) / np.log1p(full)
    brighter_is_more_rays = int(dataset.get("PixelIntensityRelationshipSign", 1) or 1) > 0
    return 1 - scaled if brighter_is_more_rays else scaled


def _padding(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    """Pixels that hold no image: PixelPaddingValue (0028,0120), up to PixelPaddingRangeLimit (0028,0121)."""
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, dtype=bool)
    ends = [int(dataset.PixelPaddingValue), int(dataset.get("PixelPaddingRangeLimit", dataset.PixelPaddingValue))]
    return np.asarray((stored >= min(ends)) & (stored <= max(ends)))


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Errors of pydicom within are an ImageError that names the file and quotes no attribute."""
    try:
        with _quiet:
            yield
    except ImageError as error:
        text = str(error)
        raise ImageError(text if text.startswith(name) else f"{name}: {text}") from error
    except _DAMAGE as error:
        raise ImageError(f"{name}: damaged DICOM: {type(error).__name__}") from error


class _Quiet:
    """Keeps pydicom's warnings of odd values, which may quote them, unsaid while any thread reads."""

    def __init__(self) -> None:
        self._lock, self._threads = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                self._validation = config.settings.reading_validation_mode
                config.settings.reading_validation_mode = config.IGNORE
                self._level = logging.getLogger("pydicom").level
                logging.getLogger("pydicom").setLevel(logging.CRITICAL)
                self._warnings = warnings.catch_warnings(action="ignore")
                self._warnings.__enter__()
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                config.settings.reading_validation_mode = self._validation
                logging.getLogger("pydicom").setLevel(self._level)
                self._warnings.__exit__(None, None, None)


_quiet = _Quiet()
