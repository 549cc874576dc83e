"""Lesions in DICOM Segmentation objects (PS3.3, A.51)."""

import io
from dataclasses import asdict, dataclass
from typing import Any

import highdicom
import numpy as np
from pydicom import Dataset

from rayad.arrays import Mask
from rayad.imaging.decoder import apart
from rayad.imaging.dicom import explained, read_bytes

_ANATOMY = ("123037004", "91723000", "85756007", "T-D0050")
"""Codes of the categories anatomical structure and tissue (PS3.16, CID 7150)."""
STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
"""SOP class of a segmentation."""


@dataclass(frozen=True)
class Segment:
    """A segment, and the images that it was drawn on."""

    number: int
    label: str
    """(0062,0005) and the meaning of its type (0062,000F)."""
    images: tuple[str, ...]
    """SOP instance UIDs."""
    anatomy: bool
    """It is a part of the body or a tissue (0062,0003), no finding."""


def segments(url: str) -> list[Segment]:
    """The segments of a file but for those that a machine made, so what a detector stored in an archive is no truth.

    Raises:
        ImageError: it is damaged or no segmentation.
    """
    return [
        Segment(**segment | {"images": tuple(segment["images"])})
        for segment in apart("segmentation:segments_in", read_bytes(url), url)[0]["segments"]
    ]


def segments_in(data: bytes, name: str) -> tuple[dict[str, Any], Mask]:
    """What `segments` gives, read in this process."""
    with explained(name):
        seg = _open(data)
        images = tuple(str(description[2]) for description in seg.get_source_image_uids())
        described = {number: seg.get_segment_description(number) for number in seg.segment_numbers}
        manual = {
            number: description
            for number, description in described.items()
            if description.get("SegmentAlgorithmType", "") != "AUTOMATIC"
        }
        rows = [
            asdict(Segment(number, _label(description), images, _is_anatomy(description)))
            for number, description in manual.items()
        ]
        return {"segments": rows}, np.zeros((0, 0), bool)


def mask(url: str, number: int, image: str) -> Mask:
    """The pixels of a segment on the image with this SOP instance UID; ImageError as `segments`."""
    return apart("segmentation:mask_in", read_bytes(url), url, number, image)[1]


def mask_in(data: bytes, name: str, number: int, image: str) -> tuple[dict[str, Any], Mask]:
    """What `mask` gives, decoded in this process."""
    with explained(name):
        pixels = _open(data).get_pixels_by_source_instance(
            [image], segment_numbers=[number], ignore_spatial_locations=True, assert_missing_frames_are_empty=True
        )
        return {}, np.asarray(pixels[0, ..., 0] > 0)


def _open(data: bytes) -> highdicom.seg.Segmentation:
    return highdicom.seg.segread(io.BytesIO(data))


def _label(segment: Dataset) -> str:
    types = [item.get("CodeMeaning", "") for item in segment.get("SegmentedPropertyTypeCodeSequence") or []]
    return " ".join(filter(None, [segment.get("SegmentLabel", ""), *types]))


def _is_anatomy(segment: Dataset) -> bool:
    return any(item.get("CodeValue") in _ANATOMY for item in segment.get("SegmentedPropertyCategoryCodeSequence") or [])
