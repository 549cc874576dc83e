"""Pictures, checked in their pixels: fixed colors, true scale bars, nothing that dies on odd input."""

import io

import numpy as np
import pytest
from PIL import Image

from rayad.evaluation.figures import CHANGE, HIGH, LOW, distributions, explained, overlay, panel, thumbnail
from rayad.evaluation.shown import DetectorMap, Healthy, View


def view(side=96, level=0.5, truth=None, spacing_mm=0.5):
    centers = np.arange(4, side, 8)
    empty = np.zeros((side, side), dtype=bool)
    pixels = np.full((side, side), level, dtype=np.float32)
    return View("mdb001", pixels, spacing_mm, centers, centers, empty if truth is None else truth)


def heat(quantile, mask=None):
    grid = np.full((12, 12), quantile) if np.isscalar(quantile) else quantile
    return DetectorMap(grid, np.zeros(grid.shape, dtype=bool) if mask is None else mask)


def decoded(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def at(png, row, col, side=96):
    """The color at a pixel of the view, read from a thumbnail."""
    image = decoded(png)
    return image[int((row + 0.5) * image.shape[0] / side), int((col + 0.5) * image.shape[1] / side)]


def test_the_color_of_a_place_does_not_depend_on_the_rest_of_the_image():
    calm = np.full((12, 12), 0.6)
    calm[5, 5] = 0.95
    alarmed = np.full((12, 12), 0.999)
    alarmed[5, 5] = 0.95
    assert (at(thumbnail(view(), heat(calm)), 44, 44) == at(thumbnail(view(), heat(alarmed)), 44, 44)).all()


def test_ordinary_places_and_places_without_a_score_show_the_bare_image():
    bare = decoded(thumbnail(view(), heat(np.nan)))
    assert (decoded(thumbnail(view(), heat(LOW))) == bare).all()
    assert (decoded(thumbnail(view(), heat(0.1))) == bare).all()


def test_color_grows_with_the_healthy_quantile_and_ends_at_the_highest():
    black = view(level=0.0)
    luminance = [at(thumbnail(black, heat(q)), 44, 44) @ [0.2126, 0.7152, 0.0722] for q in (0.5, 0.8, 0.9, 0.99, HIGH)]
    assert np.diff(luminance).min() > 5
    assert (at(thumbnail(view(), heat(1.0)), 44, 44) == at(thumbnail(view(), heat(HIGH)), 44, 44)).all()


def test_a_place_colors_the_pixels_around_its_center():
    grid = np.full((12, 12), 0.5)
    grid[5, 7] = 0.999  # pixels 40..47, 56..63
    png, bare = thumbnail(view(), heat(grid), height_px=960), thumbnail(view(), heat(np.nan), height_px=960)
    changed = np.argwhere((decoded(png) != decoded(bare)).any(axis=2)) / 10
    assert changed.min(axis=0) == pytest.approx([40, 56], abs=0.2)
    assert changed.max(axis=0) == pytest.approx([48, 64], abs=0.2)


def test_the_mask_is_outlined_along_its_places():
    mask = np.zeros((12, 12), dtype=bool)
    mask[2:4, 6:9] = True  # pixels 16..31, 48..71
    png, bare = thumbnail(view(), heat(0.5, mask), 960), thumbnail(view(), heat(0.5), 960)
    changed = np.argwhere((decoded(png) != decoded(bare)).any(axis=2)) / 10
    assert changed.min(axis=0) == pytest.approx([16, 48], abs=1.2)
    assert changed.max(axis=0) == pytest.approx([32, 72], abs=1.2)


def test_findings_are_numbered_where_they_are():
    bare, marked = (thumbnail(view(), heat(0.5), 960, marks=marks) for marks in ((), [(24.0, 60.0)]))
    changed = np.argwhere((decoded(marked) != decoded(bare)).any(axis=2)) / 10
    assert changed.mean(axis=0) == pytest.approx([24, 60], abs=1)


def test_the_scale_bar_is_as_long_as_it_says():
    picture = decoded(overlay(view(side=200, level=0.0), heat(np.full((25, 25), np.nan))))
    black = (picture == 0).all(axis=2)
    rows, cols = np.flatnonzero(black.mean(axis=1) > 0.5), np.flatnonzero(black.mean(axis=0) > 0.5)
    white = (picture[rows[0] : rows[-1], cols[0] : cols[-1]] > 200).all(axis=2)
    runs = [max(map(len, "".join("x" if w else " " for w in row).split()), default=0) for row in white]
    assert max(runs) / cols.size == pytest.approx(20 / 100, abs=0.01)  # 20 mm of 100 mm


def test_an_overlay_holds_image_and_color_bar_and_says_what_is_outlined():
    truth = np.zeros((96, 96), dtype=bool)
    truth[20:40, 20:40] = True
    picture = decoded(overlay(view(truth=truth), heat(0.9), title="mdb001, p = 0.04"))
    assert picture.shape[0] == 770
    assert picture.shape[1] > 770
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 300


def test_a_panel_has_a_row_an_image_and_columns_for_each_detector():
    mask = np.zeros((12, 12), dtype=bool)
    mask[5, 5] = True
    tissue = np.full((12, 12), np.nan)
    tissue[1:11, 0:8] = 0.95
    views = [view(truth=np.eye(96, dtype=bool)), view()]
    one = decoded(panel(views[:1], {"cae": [heat(tissue, mask)]}))
    more = decoded(panel(views, {"cae": [heat(tissue, mask)] * 2, "cae-spn": [heat(tissue)] * 2}))
    assert more.shape[0] > 1.5 * one.shape[0]
    assert more.shape[1] > 1.3 * one.shape[1]
    assert decoded(panel(views[:1], {"cae": [heat(np.nan)]})).std() > 0


def if_healthy(change=0.0):
    pixels = np.full((96, 96), 0.5, dtype=np.float32)
    return Healthy(pixels, np.full((96, 96), change, dtype=np.float32), "relative")


def test_what_is_too_bright_is_red_what_is_too_dark_blue_and_no_change_is_white():
    quarters = {}
    for change in (0.0, CHANGE, -CHANGE):
        picture = decoded(explained(view(), heat(0.5), if_healthy(change)))
        quarters[change] = picture[picture.shape[0] // 2, int(0.8 * picture.shape[1])]  # in the fourth picture
    assert quarters[0.0].min() > 240
    assert quarters[CHANGE][0] > 2 * quarters[CHANGE][2]
    assert quarters[-CHANGE][2] > 2 * quarters[-CHANGE][0]


def test_a_panel_gains_two_columns_where_there_is_a_healthy_version():
    without = decoded(panel([view()], {"cae-spn": [heat(0.9)]}))
    more = decoded(panel([view()], {"cae-spn": [heat(0.9)]}, [if_healthy()]))
    assert more.shape[1] / without.shape[1] == pytest.approx((6 * 1.6 + 0.9) / (4 * 1.6 + 0.9), abs=0.01)


def test_a_panel_of_nothing_is_refused():
    with pytest.raises(ValueError, match="needs images and detectors, got 1 and 0"):
        panel([view()], {})


def test_distributions_show_every_detector_also_with_empty_or_constant_scores():
    normal = np.random.default_rng(0).normal(size=500)
    classes = {"healthy": normal, "mass": normal + 2, "calcification": np.array([])}
    one = decoded(distributions({"cae": classes}))
    four = decoded(distributions(dict.fromkeys("abcd", classes)))
    assert four.shape[1] == 3 * one.shape[1]
    assert four.shape[0] > 1.7 * one.shape[0]
    assert decoded(distributions({"flat": {"healthy": np.zeros(9)}, "none": {}})).std() > 0


@pytest.mark.parametrize("shape", [(64, 60_000), (60_000, 64)])
def test_a_picture_of_a_very_long_image_is_no_larger_than_another(shape):
    h, w = shape
    places = np.arange(32, h, 64), np.arange(32, w, 64)
    pixels = np.linspace(0, 1, h * w, dtype=np.float32).reshape(shape)
    long = View("long", pixels, 0.01, *places, np.zeros(shape, bool))
    quantile = np.full((len(places[0]), len(places[1])), 0.995)
    found = DetectorMap(quantile, quantile > 0.99)
    for png in (
        overlay(long, found),
        explained(long, found, Healthy(pixels, pixels, "stored")),
        thumbnail(long, found),
    ):
        width, height = Image.open(io.BytesIO(png)).size
        assert width * height < 6_500_000
