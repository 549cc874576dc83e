"""What is made of an image for a caller: the picture to score, its pixels, a healthy version, DICOM objects."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from rayad.errors import ImageError, reason
from rayad.heatmaps.answers import Card
from rayad.heatmaps.drawing import if_healthy
from rayad.heatmaps.images import HeatmapRequest, decoded
from rayad.heatmaps.judgement import Judgement
from rayad.imaging import dicom
from rayad.imaging.picture import Prepared, Preprocessing
from rayad.scoring.detector import Detector


def prepared(data: bytes, preprocessing: Preprocessing, request: HeatmapRequest, name: str) -> Prepared:
    """An image from the bytes of its file, as a detector sees it."""
    try:
        return preprocessing.prepare(decoded(data, name, preprocessing.channels, request))
    except MemoryError as error:
        raise ImageError(f"{name}: {reason(error)}") from error


def arrays(
    detector: Detector, picture: Prepared, data: bytes, request: HeatmapRequest, include: Sequence[str], name: str
) -> dict[str, np.ndarray]:
    """Arrays by name: `pixels` in their own resolution, uint16 or uint8; `counterfactual` and `change` as prepared."""
    made = {}
    if "pixels" in include:
        pixels = decoded(data, name, detector.preprocessing.channels, request).pixels
        full, kind = (65535, np.uint16) if pixels.ndim == 2 else (255, np.uint8)
        made["pixels"] = np.round(pixels * full).astype(kind)
    if "counterfactual" in include:
        healthy = if_healthy(detector, picture)
        made |= {"counterfactual": healthy.pixels, "change": healthy.change}
    return made


def dicom_files(data: bytes, judged: Judgement, card: Card, request: HeatmapRequest, name: str) -> dict[str, bytes]:
    """The files of the DICOM objects of an image that came as DICOM, by kind."""
    from rayad.serving import objects  # with highdicom, when the first is asked for

    usual = HeatmapRequest(step_mm=card.step_mm)  # as `score` has it, where nobody asks for another
    changed = {key: str(value) for key, value in asdict(request).items() if value != getattr(usual, key)}
    written = objects.objects(dicom.attributes(data, name), dicom.decode(data, name), judged, card, changed)
    return {kind: objects.to_bytes(dataset) for kind, dataset in written.items()}
