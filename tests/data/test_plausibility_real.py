"""No real mammogram is refused, and an inverted one is always told."""

from collections import Counter
from dataclasses import replace

import pytest

from rayad.errors import ImageError
from rayad.imaging import dicom, raster
from rayad.imaging.mammogram import Preprocessing
from rayad.imaging.picture import Source

PREPROCESSING = Preprocessing(0.8)

MAMMOGRAMS = {
    "mini-mias/mdb0*.png": 0.2,
    "ddsm-tissue-66/*/fgt_seg/*": 0.27,
    "ddsm-normal-jpeg/*.jp*g": 0.05,
    "cbis-ddsm-dicom/*/*.dcm": 0.05,
}
"""Real images and mm a pixel, where files do not say it."""
ALL_OF_THEM = pytest.param("mini-mias/*.png", 0.2, marks=pytest.mark.long)


@pytest.mark.parametrize(("pattern", "spacing_mm"), [*MAMMOGRAMS.items(), ALL_OF_THEM])
def test_no_real_mammogram_is_refused_and_every_inverted_one_is_told(real_data, pattern, spacing_mm):
    found = Counter()
    for file in sorted(real_data.glob(pattern)):
        name = str(file)
        is_dicom = name.endswith(".dcm")
        pixels = dicom.read(name) if is_dicom else raster.grey(raster.read(name), name)
        source = Source(pixels, (is_dicom and dicom.header(name).spacing_mm) or spacing_mm)
        found["images"] += 1
        found["doubtful"] += bool(PREPROCESSING.prepare(source).doubts)
        try:
            found["told"] += bool(PREPROCESSING.prepare(replace(source, pixels=1 - pixels)).doubts)
        except ImageError:
            found["told"] += 1
    assert found["images"] > 1
    assert found["doubtful"] <= 1
    assert found["told"] == found["images"]
