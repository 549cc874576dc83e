"""From an image to what the stages see."""

import numpy as np
import pytest

from rayad.datasets import phantom
from rayad.errors import ImageError, OptionError
from rayad.imaging.context import context
from rayad.imaging.mammogram import Preprocessing, intensity
from rayad.imaging.picture import Source
from tests.burnt_in import burn


@pytest.fixture(scope="module")
def breast() -> np.ndarray:
    dataset = phantom.Dataset(patients=1)
    return dataset.pixels(dataset.exams()[0])


def test_an_image_at_its_working_resolution_keeps_its_values(breast):
    prepared = Preprocessing(spacing_mm=0.4).prepare(Source(breast, 0.4, "MLO"))
    assert np.array_equal(prepared.stored, breast)
    assert prepared.pixels is prepared.stored
    assert not (prepared.tissue & ~prepared.body).any()


def test_the_working_resolution_is_in_mm(breast):
    prepared = Preprocessing(spacing_mm=0.8).prepare(Source(breast, 0.4, ""))
    assert prepared.stored.shape == (breast.shape[0] // 2, breast.shape[1] // 2)
    assert prepared.source.pixels is breast


def test_the_relative_intensity_is_how_much_brighter_a_place_is_than_around():
    tissue = np.ones((80, 80), bool)
    stored = np.full((80, 80), 0.4, np.float32)
    stored[40, 40], stored[10, 10] = 0.6, 0.2
    seen = intensity(stored, tissue, Preprocessing(intensity="relative"))
    assert seen[40, 40] == seen.max() == pytest.approx(1)
    assert seen[10, 10] == 0
    moved = intensity(stored * 0.5 + 0.1, tissue, Preprocessing(intensity="relative"))
    assert moved == pytest.approx(seen, abs=1e-5)  # neither the film's gain nor its offset matters


@pytest.mark.parametrize("shape", [(80, 64), (211, 97), (64, 300)])
@pytest.mark.parametrize("surround_mm", [1.0, 3.2, 8.0, 20.0, 60.0])
def test_the_mean_of_the_surroundings_is_that_of_a_gaussian(shape, surround_mm):
    """As wide as the image and wider, beyond whose border it goes on as in a mirror; summed term by term."""
    rng = np.random.default_rng(0)
    tissue, stored = rng.random(shape) < 0.8, rng.random(shape).astype(np.float32)
    stored[: shape[0] // 2] += 1
    seen = intensity(stored, tissue, Preprocessing(intensity="relative", surround_mm=surround_mm))
    truth = [stored * tissue.astype(float), tissue.astype(float)]
    for axis in (0, 1):
        sides = np.arange(shape[axis])
        offsets = np.arange(-8 * 150, 8 * 150 + 1)
        weights = np.exp(-0.5 * (offsets * 0.4 / surround_mm) ** 2)
        mirrored = np.pad(sides, 1200, mode="symmetric")[sides[:, None] + 1200 + offsets]
        matrix = np.zeros((len(sides), len(sides)))
        np.add.at(matrix, (sides[:, None], mirrored), weights / weights.sum())
        truth = [np.moveaxis(np.tensordot(matrix, part, (1, axis)), 0, axis) for part in truth]
    above = np.where(tissue, stored - truth[0] / truth[1], 0)
    expected = np.clip(above / above[tissue].std(), 0, 5) / 5
    assert seen == pytest.approx(expected, abs=1e-3)


def test_the_context_is_where_a_place_lies(breast):
    prepared = Preprocessing().prepare(Source(breast, 0.4, ""))
    maps = context(prepared)
    rows, columns = np.nonzero(prepared.body)
    assert maps["rel_row"][rows.min(), 0] == 0
    assert maps["rel_row"][rows.max(), 0] == 1
    assert maps["rel_col"][0, columns.max()] == 1
    assert maps["skin_mm"][~prepared.body].max() == 0


def test_the_ring_around_a_patch_does_not_see_the_patch(breast):
    prepared = Preprocessing().prepare(Source(breast, 0.4, ""))
    row, column = 250, 120
    before = context(prepared)["ring_density"][row, column]
    prepared.stored[row - 32 : row + 32, column - 32 : column + 32] = 1
    assert context(prepared)["ring_density"][row, column] == pytest.approx(before, abs=1e-5)


def test_an_image_smaller_than_a_patch_is_refused_with_its_sizes(breast):
    with pytest.raises(ImageError, match=r"is 63x60 px at 0\.4 mm, smaller than 64x64 px"):
        Preprocessing().prepare(Source(breast[:63, :60], 0.4, ""))


def test_a_spacing_that_is_no_length_is_refused(breast):
    with pytest.raises(OptionError, match="positive"):
        Preprocessing().prepare(Source(breast, 0.0, ""))


@pytest.mark.parametrize("top", [0.01, 0.95])
def test_burnt_in_text_is_painted_over_and_not_in_the_tissue(breast, top):
    """The breast is that of the image without text, and where the text was is background."""
    burnt, text = burn(breast, top, right=True, height_px=12)
    clean, seen = (Preprocessing(0.4).prepare(Source(of, 0.4)) for of in (breast, burnt))
    assert text.sum() > 300
    assert not clean.body[text].any()  # else the text is not in the background
    assert (seen.tissue ^ clean.tissue).mean() < 1e-3
    assert seen.hidden is not None
    assert seen.hidden[text].all()
    assert np.ptp(seen.pixels[text]) == 0
    assert seen.pixels[text].max() < seen.pixels[seen.tissue].min()


def test_surroundings_of_very_many_pixels_are_refused():
    assert Preprocessing(0.02, intensity="relative").surround_mm == 20
    with pytest.raises(OptionError, match=r"surroundings of 200 mm are 2e\+04 px of 0.01 mm, more than 1000"):
        Preprocessing(0.01, surround_mm=200)


def test_an_image_that_is_larger_than_any_film_is_refused_before_it_is_resampled():
    with pytest.raises(ImageError, match="an image of 1000 x 5120 mm, 10 mm a pixel, is larger than any film"):
        Preprocessing().prepare(Source(np.ones((100, 512), np.float32), 10.0))
