"""Where patches are taken, and that a deep image keeps every level on the way."""

import numpy as np
import pytest

from rayad.errors import ImageError
from rayad.patches.corpus import FULL_SCALE
from rayad.patches.sample import Sampling, choose, cut, leaves_image, skin_line


def half_disc(h: int = 200, w: int = 160) -> np.ndarray:
    """A breast that touches the left border."""
    rows, columns = np.ogrid[:h, :w]
    return (rows - h / 2) ** 2 + columns**2 <= 90**2


def test_half_of_the_patches_lie_on_the_skin_line_and_half_in_the_tissue():
    breast = half_disc()
    tissue = breast & (np.arange(200)[:, None] > 60)
    rows, columns, region = choose(breast, tissue, Sampling(patches=50), "a")
    contour = region == "contour"
    assert contour.sum() == 25
    assert skin_line(breast)[rows[contour], columns[contour]].all()
    assert tissue[rows[~contour], columns[~contour]].all()


def test_the_chest_wall_at_the_images_border_is_no_skin_line():
    assert not skin_line(half_disc())[20:180, 0].any()


def test_places_depend_on_seed_and_exam_alone():
    breast = half_disc()
    first = choose(breast, breast, Sampling(patches=20), "a")
    assert all(np.array_equal(a, b) for a, b in zip(first, choose(breast, breast, Sampling(20), "a"), strict=True))
    assert not np.array_equal(first[0], choose(breast, breast, Sampling(patches=20), "b")[0])
    assert not np.array_equal(first[0], choose(breast, breast, Sampling(patches=20, seed=1), "a")[0])


def test_a_patch_is_what_its_definition_says():
    pixels = np.random.default_rng(0).random((100, 90), dtype=np.float32)
    patch = cut(pixels, np.array([50]), np.array([40]))[0]
    assert np.array_equal(patch, pixels[18:82, 8:72])
    assert leaves_image((100, 90), np.array([50, 10, 69]), np.array([40, 40, 40])).tolist() == [False, True, True]


def test_a_twelve_bit_ramp_in_sixteen_bits_survives_to_the_patch():
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    pixels = ramp.astype(np.float32) / FULL_SCALE
    patch = cut(pixels, np.array([32]), np.array([32]))[0]
    assert np.array_equal(np.round(patch * FULL_SCALE).astype(np.uint16), ramp)


def test_an_image_without_tissue_is_refused():
    empty = np.zeros((100, 100), bool)
    with pytest.raises(ImageError, match="no interior place"):
        choose(empty, empty, Sampling(), "a")
