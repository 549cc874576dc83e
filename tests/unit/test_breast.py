"""rayad.imaging.breast on drawn mammograms, whose breast, muscle and distances are known."""

import numpy as np
import pytest
from scipy import ndimage

from rayad.arrays import Mask, Pixels
from rayad.errors import ImageError
from rayad.imaging.breast import find_breast, find_pectoral, skin_distance

SPACING_MM = 0.5
HEIGHT, WIDTH, RADIUS = 400, 300, 150  # pixels
MIRRORED = pytest.mark.parametrize("mirrored", [False, True])


def dice(a: Mask, b: Mask) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def half_disc(chest_wall: int = 0) -> Mask:
    """A breast of 150 pixels that touches the column `chest_wall`."""
    row, column = np.indices((HEIGHT, WIDTH))
    return (np.hypot(row - HEIGHT / 2, column - chest_wall) < RADIUS) & (column >= chest_wall)


def film(breast: Mask, background: float = 0.1, seed: int = 0) -> Pixels:
    """Noisy film on which the breast fades in over 5 mm, as skin does."""
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(breast, ((0, 0), (100, 0)), mode="edge")))[:, 100:]
    image = background + (0.6 - background) * np.minimum(depth / 10, 1) ** 0.5
    noise = np.random.default_rng(seed).normal(0, 0.005, breast.shape)
    return np.clip(image + noise, 0, 1).astype(np.float32)


def with_muscle(pixels: Pixels, breast: Mask, right: float, down: float) -> tuple[Pixels, Mask]:
    row, column = np.indices(pixels.shape)
    muscle = breast & (column / right + (row - np.flatnonzero(breast.any(axis=1))[0]) / down < 1)
    return np.where(muscle, pixels + np.float32(0.25), pixels), muscle


@MIRRORED
@pytest.mark.parametrize("background", [0.0, 0.05, 0.2])
def test_the_breast_is_found_on_any_background(background: float, mirrored: bool) -> None:
    truth = half_disc()
    pixels = film(truth, background)
    if mirrored:
        truth, pixels = truth[:, ::-1], pixels[:, ::-1]
    assert dice(find_breast(pixels, SPACING_MM), truth) > 0.98


@pytest.mark.parametrize("spacing_mm", [0.2, 0.5, 0.8, 1.1])
def test_the_mask_has_the_shape_of_the_image_whatever_its_spacing(spacing_mm: float) -> None:
    truth = half_disc()[:, :-3]
    mask = find_breast(film(truth), spacing_mm)
    assert mask.shape == truth.shape
    assert mask.dtype == bool
    assert dice(mask, truth) > 0.97


@MIRRORED
def test_the_glow_along_the_edge_of_the_film_is_cut_off_above_and_below_the_breast(mirrored: bool) -> None:
    """As on a film of CBIS-DDSM: from half the breast's brightness to nothing within 15 mm, over the whole film."""
    truth = half_disc()
    glow = 0.16 * np.exp(-np.arange(WIDTH, dtype=np.float32) * SPACING_MM / 6)
    pixels = np.maximum(0.5 * film(truth, 0.01), glow)
    if mirrored:
        truth, pixels = truth[:, ::-1], pixels[:, ::-1]
    mask = find_breast(pixels, SPACING_MM)
    assert not mask[: HEIGHT // 2 - RADIUS - 12].any()  # 6 mm
    assert not mask[HEIGHT // 2 + RADIUS + 12 :].any()
    assert dice(mask, truth) > 0.96


def test_a_breast_with_a_thin_end_keeps_it() -> None:
    """Its end is as bright as the rest, and ends in skin."""
    truth = half_disc() | (np.indices((HEIGHT, WIDTH))[1] < 20)
    assert dice(find_breast(film(truth), SPACING_MM), truth) > 0.97


def test_labels_stripes_tape_and_film_edges_are_left_out() -> None:
    truth = half_disc()
    pixels = film(truth)
    clutter = np.zeros_like(truth)
    clutter[20:60, 230:270] = True  # a label
    clutter[:, 290:] = True  # the film's bright edge
    clutter[200:203, 150:290] = True  # a scanner's stripe that touches the breast
    clutter[:, 297:] = True
    clutter &= ~truth
    pixels[clutter] = 1
    mask = find_breast(pixels, SPACING_MM)
    assert dice(mask, truth) > 0.98
    assert mask[clutter].mean() < 0.02


def test_tape_across_the_film_is_cut_where_the_breast_ends() -> None:
    truth = half_disc()
    truth[:200, :100] = True  # the arm's side goes up to the top of the film
    pixels = film(truth)
    tape = np.zeros_like(truth)
    tape[10:50] = True
    pixels[tape] += 0.3
    mask = find_breast(pixels, SPACING_MM)
    assert mask[tape & truth].mean() > 0.95
    assert mask[tape & ~truth].mean() < 0.1


def test_the_nipple_stays() -> None:
    row, column = np.indices((HEIGHT, WIDTH))
    nipple = np.hypot(row - HEIGHT / 2, column - RADIUS) < 10  # 10 mm across
    mask = find_breast(film(half_disc() | nipple), SPACING_MM)
    assert mask[nipple].mean() > 0.8


def test_a_breast_that_touches_no_border_is_found() -> None:
    row, column = np.indices((HEIGHT, WIDTH))
    truth = np.hypot((row - 200) / 140, (column - 150) / 100) < 1
    assert dice(find_breast(film(truth), SPACING_MM), truth) > 0.95


def test_padding_beside_the_film_is_not_the_background() -> None:
    truth = half_disc(chest_wall=60)
    pixels = film(truth, background=0.1)
    pixels[:, :60] = 0
    assert dice(find_breast(pixels, SPACING_MM), truth) > 0.97


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_an_image_of_one_value_shows_no_breast(value: float) -> None:
    with pytest.raises(ImageError, match=f"no breast in the image: every pixel is {value:.3g}"):
        find_breast(np.full((100, 120), value, np.float32), SPACING_MM)


def test_an_image_of_a_label_alone_shows_no_breast() -> None:
    pixels = np.zeros((HEIGHT, WIDTH), np.float32)
    pixels[20:50, 20:50] = 1
    with pytest.raises(ImageError, match="no breast in the image"):
        find_breast(pixels, SPACING_MM)
    pixels[:] = 0
    pixels[::40] = 1
    with pytest.raises(ImageError, match="no breast in the image"):
        find_breast(pixels, SPACING_MM)


@MIRRORED
@pytest.mark.parametrize(("right", "down"), [(70.0, 160.0), (40.0, 220.0), (90.0, 110.0)])
def test_the_muscle_is_found(right: float, down: float, mirrored: bool) -> None:
    breast = half_disc()
    breast[:200, :110] = True
    pixels, truth = with_muscle(film(breast), breast, right, down)
    if mirrored:
        breast, pixels, truth = breast[:, ::-1], pixels[:, ::-1], truth[:, ::-1]
    assert dice(find_pectoral(pixels, breast, SPACING_MM), truth) > 0.93


@pytest.mark.parametrize("seed", range(3))
def test_no_muscle_is_found_in_an_even_breast(seed: int) -> None:
    breast = half_disc()
    assert not find_pectoral(film(breast, seed=seed), breast, SPACING_MM).any()


def test_the_muscle_is_a_part_of_the_breast_and_not_most_of_it() -> None:
    breast = half_disc()
    breast[:200, :110] = True
    pixels, _ = with_muscle(film(breast), breast, 130.0, 390.0)  # two thirds of the breast
    muscle = find_pectoral(pixels, breast, SPACING_MM)
    assert not (muscle & ~breast).any()
    assert muscle.sum() <= 0.37 * breast.sum()


def test_no_breast_has_no_muscle_and_no_depth() -> None:
    nothing = np.zeros((90, 70), bool)
    assert not find_pectoral(np.zeros((90, 70), np.float32), nothing, SPACING_MM).any()
    assert not skin_distance(nothing, SPACING_MM).any()


@MIRRORED
@pytest.mark.parametrize("chest_wall", [0, 60])
def test_depth_is_the_distance_to_the_arc_and_not_to_the_chest_wall(chest_wall: int, mirrored: bool) -> None:
    breast = half_disc(chest_wall)
    row, column = np.indices(breast.shape)
    expected = np.where(breast, RADIUS - np.hypot(row - HEIGHT / 2, column - chest_wall), 0) * SPACING_MM
    flip = slice(None, None, -1 if mirrored else 1)
    depth = skin_distance(breast[:, flip], SPACING_MM)[:, flip]
    assert depth.dtype == np.float32
    assert (depth[breast] > 0).all()
    assert (depth[~breast] == 0).all()
    np.testing.assert_allclose(depth, expected, atol=1.5 * SPACING_MM)


def test_depth_does_not_start_where_the_image_cuts_the_breast() -> None:
    breast = half_disc()[120:280]  # the top and the bottom of the breast are not in the image
    depth = skin_distance(breast, SPACING_MM)
    column = 40
    whole = skin_distance(half_disc(), SPACING_MM)[120:280]
    assert depth[0, column] > 0.9 * whole[0, column]
    assert depth[80, column] == pytest.approx((RADIUS - column) * SPACING_MM, abs=1)


def test_a_breast_that_fills_the_image_has_no_skin_line() -> None:
    with pytest.raises(ImageError, match="no skin line"):
        skin_distance(np.ones((50, 40), bool), SPACING_MM)
