"""The floors against loops over every pixel of the tissue."""

import numpy as np
import pytest
from scipy import ndimage

from rayad.arrays import Mask, Pixels
from rayad.scoring.floors import MAPS


@pytest.fixture
def tissue() -> Mask:
    mask = np.zeros((90, 110), bool)
    mask[5:80, :70] = True
    mask[40:, 60:100] = True
    mask[30:34, 20:50] = False
    return mask


@pytest.fixture
def pixels() -> Pixels:
    return np.random.default_rng(0).random((90, 110), np.float32)


def box(array: np.ndarray, row: int, column: int, before: int, after: int) -> np.ndarray:
    return array[max(row - before, 0) : row + after, max(column - before, 0) : column + after]


def mean(pixels: Pixels, tissue: Mask, row: int, column: int, before: int, after: int) -> float:
    values, inside = (box(a, row, column, before, after) for a in (pixels, tissue))
    return float(values[inside].mean(dtype=np.float64))


def each(tissue: Mask) -> np.ndarray:
    return np.argwhere(tissue)[::37]


def test_brightness_is_the_mean_of_the_tissue_in_a_patch(pixels, tissue):
    found = MAPS["brightness"](pixels, tissue, 0.4)
    for row, column in each(tissue):
        assert found[row, column] == pytest.approx(mean(pixels, tissue, row, column, 32, 32), abs=1e-9)


def test_relative_brightness_is_a_spot_minus_its_surroundings(pixels, tissue):
    found = MAPS["relative-brightness"](pixels, tissue, 0.4)
    for row, column in each(tissue):
        spot = mean(pixels, tissue, row, column, 6, 7)
        assert found[row, column] == pytest.approx(spot - mean(pixels, tissue, row, column, 40, 41), abs=1e-9)


def test_local_deviation_is_that_of_the_tissue_in_a_spot(pixels, tissue):
    found = MAPS["local-deviation"](pixels, tissue, 0.4)
    for row, column in each(tissue):
        values, inside = (box(a, row, column, 6, 7) for a in (pixels, tissue))
        assert found[row, column] == pytest.approx(values[inside].astype(float).std(), abs=1e-9)


def test_top_hat_is_that_of_scipy_where_all_is_tissue(pixels):
    everything = np.ones_like(pixels, bool)
    hat = ndimage.white_tophat(pixels, 5, mode="nearest")
    found = MAPS["top-hat"](pixels, everything, 0.4)
    for row, column in each(everything):
        assert found[row, column] == pytest.approx(box(hat, row, column, 32, 32).max(), abs=1e-6)


def test_top_hat_finds_a_speck_but_no_edge_of_the_tissue():
    tissue = np.zeros((150, 150), bool)
    tissue[10:140, :90] = True
    pixels = np.where(tissue, 0.5, 0.0)
    assert np.nanmax(MAPS["top-hat"](pixels, tissue, 0.4)) == 0
    pixels[70, 50] = 0.8
    found = MAPS["top-hat"](pixels, tissue, 0.4)
    assert found[70, 50] == pytest.approx(0.3)
    assert found[70, 50 - 31] == pytest.approx(0.3)  # [c - 32, c + 32) holds the speck
    assert found[70, 50 - 32] == 0


@pytest.mark.parametrize("name", MAPS)
def test_what_is_outside_the_tissue_does_not_count(name, pixels, tissue):
    found = MAPS[name](pixels, tissue, 0.4)
    assert (np.isnan(found) == ~tissue).all()
    other = np.where(tissue, pixels, np.float32(7))
    np.testing.assert_allclose(MAPS[name](other, tissue, 0.4), found, atol=1e-12)


@pytest.mark.parametrize("name", MAPS)
def test_no_tissue_gives_no_score(name, pixels):
    assert np.isnan(MAPS[name](pixels, np.zeros_like(pixels, bool), 0.4)).all()
