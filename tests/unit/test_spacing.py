"""rayad.imaging.spacing against images whose resampled form is known in closed form."""

import numpy as np
import pytest

from rayad.arrays import Mask
from rayad.errors import OptionError
from rayad.imaging.spacing import resample, resample_mask

SPACINGS = [(0.2, 0.4), (0.05, 0.2), (0.2, 0.27), (0.2, 0.1), (0.4, 0.3)]


def centers(count: int, extent: float) -> np.ndarray:
    """Where the middles of `count` pixels lie on a side of length `extent`."""
    return (np.arange(count) + 0.5) * extent / count


def disc(count: int, radius: float) -> Mask:
    """A disc in the middle of a field of view of side 1."""
    y, x = np.meshgrid(centers(count, 1), centers(count, 1), indexing="ij")
    return (y - 0.5) ** 2 + (x - 0.5) ** 2 <= radius**2


@pytest.mark.parametrize(("from_mm", "to_mm"), SPACINGS)
def test_a_ramp_stays_a_ramp(from_mm: float, to_mm: float) -> None:
    rows, columns = 80, 123
    ramp = np.add.outer(centers(rows, 0.4), centers(columns, 0.6)).astype(np.float32)
    result = resample(ramp, from_mm, to_mm)
    shape = round(rows * from_mm / to_mm), round(columns * from_mm / to_mm)
    expected = np.add.outer(centers(shape[0], 0.4), centers(shape[1], 0.6))
    assert result.shape == shape
    assert result.dtype == np.float32
    inner = slice(8, -8), slice(8, -8)
    np.testing.assert_allclose(result[inner], expected[inner], atol=3e-4)  # a step is 5e-3


@pytest.mark.parametrize(("from_mm", "to_mm"), SPACINGS)
def test_the_mean_is_kept(from_mm: float, to_mm: float) -> None:
    noise = np.random.default_rng(0).random((160, 160), dtype=np.float32)
    assert resample(noise, from_mm, to_mm).mean() == pytest.approx(noise.mean(), abs=2e-3)


@pytest.mark.parametrize(("cycles_per_mm", "amplitude"), [(0.25, 1), (0.8, 1), (2.0, 0), (2.3, 0)])
def test_what_the_new_spacing_cannot_show_vanishes(cycles_per_mm: float, amplitude: float) -> None:
    # 0.1 mm to 0.4 mm: the new Nyquist frequency is 1.25 cycles/mm
    wave = np.sin(2 * np.pi * cycles_per_mm * centers(512, 51.2)) / 2 + 0.5
    result = resample(np.tile(wave, (64, 1)).astype(np.float32), 0.1, 0.4)[:, 4:-4]
    assert np.sqrt(2) * 2 * result.std() == pytest.approx(amplitude, abs=0.04)


def test_equal_spacings_return_the_same_array() -> None:
    pixels = np.zeros((4, 5), np.float32)
    assert resample(pixels, 0.2, 0.2) is pixels
    mask = np.zeros((4, 5), bool)
    assert resample_mask(mask, (4, 5)) is mask


def test_no_value_leaves_the_range_and_no_side_vanishes() -> None:
    edge = np.zeros((40, 40), np.float32)
    edge[:, 20:] = 1
    for to_mm in (0.3, 0.05):
        result = resample(edge, 0.1, to_mm)
        assert result.min() == 0
        assert result.max() == 1
    assert resample(edge, 0.1, 100.0).shape == (1, 1)


def test_a_view_that_is_not_contiguous_is_resampled_as_its_copy() -> None:
    pixels = np.random.default_rng(0).random((40, 60), dtype=np.float32)
    np.testing.assert_array_equal(resample(pixels[:, ::-2], 0.1, 0.2), resample(pixels[:, ::-2].copy(), 0.1, 0.2))


@pytest.mark.parametrize("spacing_mm", [0.0, -0.1, float("nan"), float("inf")])
def test_an_impossible_spacing_is_refused(spacing_mm: float) -> None:
    pixels = np.zeros((4, 4), np.float32)
    with pytest.raises(OptionError, match="a spacing is a positive number of mm"):
        resample(pixels, spacing_mm, 0.1)
    with pytest.raises(OptionError, match="a spacing is a positive number of mm"):
        resample(pixels, 0.1, spacing_mm)


@pytest.mark.parametrize("count", [64, 150, 501])
def test_a_disc_stays_a_disc_in_a_mask(count: int) -> None:
    result = resample_mask(disc(200, 0.3), (count, count))
    assert (result != disc(count, 0.3)).mean() < 0.005
    full = resample_mask(np.ones((200, 200), bool), (count, count))
    assert full.all()
