"""Places of one breast and of the other, on breasts whose counterparts are known."""

import numpy as np
import pytest

from rayad.errors import ImageError
from rayad.imaging.counterpart import counterparts, laid_on, skin_line
from rayad.imaging.picture import Prepared, Source

SPACING_MM = 0.8


def breast(height: int = 220, width: int = 120, row: float = 100, deepest: float = 80, radius: float = 90) -> Prepared:
    """Half an egg at the left border, pointed at the lower end; its upper corner is muscle."""
    y, x = np.mgrid[:height, :width]
    below = np.where(y > row, 1.25, 1.0)
    body = ((y - row) / radius * below) ** 2 + (x / deepest) ** 2 < 1
    return prepared(body, body & (y - row + radius > 40 - x))


def prepared(body: np.ndarray, tissue: np.ndarray) -> Prepared:
    pixels = np.full(body.shape, 0.5, np.float32) * body
    return Prepared(pixels, pixels, body, tissue, SPACING_MM, Source(pixels, SPACING_MM))


def moved(image: Prepared, down: int = 0, deeper: int = 0, mirrored: bool = False) -> Prepared:
    """The breast further down, with a strip more at the chest wall, and seen from the other side."""
    masks = []
    for mask in (image.body, image.tissue):
        mask = np.roll(mask, down, axis=0)
        mask = np.concatenate([np.repeat(mask[:, :1], deeper, axis=1), mask], axis=1)
        masks.append(mask[:, ::-1].copy() if mirrored else mask)
    return prepared(*masks)


def places(image: Prepared, step: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """A grid that a mirror maps onto itself, and its places in the tissue, n 2."""
    rows, columns = (np.arange(side % step // 2, side, step) for side in image.body.shape)
    inside = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)[image.tissue[np.ix_(rows, columns)]]
    return (rows, columns), inside


def found(image: Prepared, other: Prepared, step: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Places of one breast, and what is found for them in the other, n 2 each."""
    (grid, here), (other_grid, there) = places(image, step), places(other, step)
    return here, there[counterparts(image, other, grid, other_grid)]


def test_a_mirrored_breast_maps_onto_itself_exactly():
    image = breast()
    here, there = found(image, moved(image, mirrored=True))
    assert np.array_equal(there, np.stack([here[:, 0], 119 - here[:, 1]], 1))
    here, there = found(image, image)
    assert np.array_equal(here, there)


@pytest.mark.parametrize("down", [-8, 5, 17])
def test_one_that_lies_elsewhere_on_the_film_is_found_to_a_pixel(down):
    image = breast()
    here, there = found(image, moved(image, down, mirrored=True))
    error = there - np.stack([here[:, 0] + down, 119 - here[:, 1]], 1)
    assert np.abs(error).max() <= 1


def test_a_film_that_was_cut_deeper_is_found_to_some_millimetres():
    image = breast()
    here, there = found(image, moved(image, deeper=10))
    error_mm = np.hypot(*(there - here - np.array([0, 10])).T) * SPACING_MM
    assert np.median(error_mm) < 1
    assert np.quantile(error_mm, 0.95) < 8  # WITHIN_MM of rayad/scoring/other_side.py


def test_a_breast_that_is_a_twentieth_larger_is_found_to_some_millimetres():
    image, larger = breast(), breast(row=105, deepest=84, radius=94.5)
    here, there = found(image, larger, step=2)
    error_mm = np.hypot(*(there - 1.05 * here).T) * SPACING_MM
    assert np.median(error_mm) < 4
    assert np.quantile(error_mm, 0.95) < 8


def test_the_skin_line_is_that_of_a_half_disc_and_shifts_are_found():
    y, x = np.mgrid[:200, :120]
    disc = (y - 100) ** 2 + x**2 < 80**2
    line = skin_line(disc, 0.5)
    assert line.reach == pytest.approx(0.5 * np.sqrt(80**2 - (line.rows / 0.5 - 0.5 - 100) ** 2), abs=0.51)
    assert skin_line(disc[:, ::-1].copy(), 0.5).reach == pytest.approx(line.reach)
    assert laid_on(line, skin_line(np.roll(disc, 12, axis=0), 0.5)) == pytest.approx((6, 0), abs=0.2)


def test_an_empty_mask_is_refused():
    with pytest.raises(ImageError, match="there is no breast"):
        skin_line(np.zeros((20, 20), bool), 0.8)
