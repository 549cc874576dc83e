"""Damaged images: whatever the bytes, an image or an ImageError, never another exception."""

import io

import numpy as np
import pytest
from PIL import Image

from rayad.errors import ImageError
from rayad.imaging import raster


@pytest.mark.parametrize("kind", ["png", "tiff", "jpeg", "ppm"])
def test_flipped_and_cut_bytes_never_raise_anything_but_an_image_error(kind: str):
    random = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 255, (40, 30), dtype=np.uint8)).save(buffer, format=kind)
    whole = np.frombuffer(buffer.getvalue(), np.uint8)
    read = 0
    for _ in range(2000):
        damaged = whole.copy()
        damaged[random.integers(0, len(whole), 1 + random.integers(4))] = random.integers(0, 256)
        data = damaged[: random.integers(1, len(whole) + 1)] if random.random() < 0.3 else damaged
        try:
            raster.decode(data.tobytes(), "damaged")
            read += 1
        except ImageError:
            continue
    assert read < 2000
