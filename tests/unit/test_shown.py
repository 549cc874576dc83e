"""The small picture that is kept of an image shows what the whole one would."""

import io

import numpy as np
import pytest
from PIL import Image

from rayad.evaluation.figures import thumbnail
from rayad.evaluation.shown import THUMBNAIL_PX, DetectorMap, View, reduced


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] / height
    return (0.4 + 0.3 * np.sin(5 * rows) * np.cos(7 * columns)).astype(np.float32)


def test_a_lesion_smaller_than_a_pixel_of_the_small_picture_is_in_it():
    truth = np.zeros((1000, 600), bool)
    truth[500, 300] = True
    picture, small_truth = reduced(smooth(1000, 600), truth)
    assert picture.shape == small_truth.shape == (THUMBNAIL_PX, 156)
    assert np.argwhere(small_truth).tolist() == [[130, 78]]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_image_is_kept_as_it_is(channels):
    pixels = smooth(96, 64) if channels == 1 else np.repeat(smooth(96, 64)[..., None], 3, 2)
    picture, truth = reduced(pixels, np.zeros((96, 64), bool))
    white = np.quantile(pixels, 0.999) if channels == 1 else 1.0
    assert picture.dtype == np.uint8
    assert np.abs(picture / 255 - np.minimum(pixels / white, 1)).max() <= 0.5 / 255 + 1e-6
    assert truth.shape == (96, 64)


def test_the_thumbnail_of_the_small_picture_is_that_of_the_whole():
    pixels, truth = smooth(1040, 640), np.zeros((1040, 640), bool)
    truth[300:420, 200:330] = True
    rows, columns = np.arange(8, 1040, 16), np.arange(8, 640, 16)
    generator = np.random.default_rng(0)
    found = DetectorMap(generator.uniform(0.4, 1, (rows.size, columns.size)), generator.random((65, 40)) > 0.99)
    picture, small_truth = reduced(pixels, truth)
    grey = picture.astype(np.float32) / 255
    small = View("a", grey, 0.8, (rows + 0.5) / 4 - 0.5, (columns + 0.5) / 4 - 0.5, small_truth)
    whole = View("a", pixels, 0.2, rows, columns, truth)
    one, other = (
        np.asarray(Image.open(io.BytesIO(thumbnail(view, found))).convert("RGB"), float) for view in (whole, small)
    )
    assert one.shape == other.shape
    assert np.abs(one - other).mean() < 4
