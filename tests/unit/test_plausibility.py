"""What is refused and what is doubted of an image; tests/data has the real ones."""

from typing import get_args

import numpy as np
import pytest

from rayad.datasets import phantom
from rayad.errors import ImageError, OptionError
from rayad.imaging import plausibility
from rayad.imaging.breast import chest_wall
from rayad.imaging.mammogram import Preprocessing
from rayad.imaging.picture import Prepared, Source

PREPROCESSING = Preprocessing(0.8)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    data = phantom.Dataset(patients=2, seed=7, height=256, width=192, spacing_mm=0.8)
    return data.pixels(data.exams()[0])


def prepared(pixels: np.ndarray, spacing_mm: float = 0.8, *force: str) -> Prepared:
    return PREPROCESSING.prepare(Source(pixels.astype(np.float32), spacing_mm, force=force))


def kinds(pixels: np.ndarray, spacing_mm: float = 0.8, *force: str) -> list[str]:
    return [doubt.kind for doubt in prepared(pixels, spacing_mm, *force).doubts]


def test_an_image_as_it_should_be_is_not_doubted(image):
    for turned in (image, image[:, ::-1], image[::-1], np.rot90(image), np.rot90(image, 3)):
        assert kinds(turned) == []


def test_an_image_that_is_cut_to_the_breast_is_not_doubted(image):
    rows, columns = np.nonzero(image > 0.08)
    assert kinds(image[rows.min() : rows.max(), columns.min() : columns.max()]) == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda image: 1 - image,
        lambda image: (1 - image) / 16,
        lambda image: (1 - image[:, ::-1]) * 0.5,
    ],
)
def test_bright_air_is_refused_and_can_be_overruled(image, wrong):
    with pytest.raises(ImageError, match="the image seems to be inverted, or to show no breast"):
        prepared(wrong(image))
    assert "polarity" in kinds(wrong(image), 0.8, "polarity")


def test_noise_is_refused(image):
    with pytest.raises(ImageError):
        prepared(np.random.default_rng(0).random(image.shape))


def test_pale_air_is_doubted(image):
    assert kinds(0.8 * image + 0.2) == ["polarity"]


WRONG = [
    (0.14, "a breast is 40 to 350 mm high, not 3"),
    (2.3, "a breast is 40 to 350 mm high, not 5"),
    (40, "10240 x 7680 mm, 40 mm a pixel, is larger than any film"),
]


@pytest.mark.parametrize(("spacing_mm", "sentence"), WRONG)
def test_a_breast_of_another_size_is_refused(image, spacing_mm, sentence):
    with pytest.raises(ImageError, match=sentence):
        Preprocessing(0.2).prepare(Source(image, spacing_mm))


def test_the_size_can_be_overruled(image):
    assert kinds(image, 2.3, "size") == ["size"]


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_than_the_file_has_are_found(image, bits):
    full = np.float32(2**bits - 1)
    stored = np.rint(image / image.max() * full)
    found = prepared(stored.astype(np.float32) / np.float32(65535))
    assert [doubt.kind for doubt in found.doubts] == ["depth"]
    assert f"values end at {int(full):,} of 65,535 and are taken for {bits} bits" in found.doubts[0].sentence
    reference = prepared(stored.astype(np.float32) / full)
    np.testing.assert_array_equal(found.stored, reference.stored)
    np.testing.assert_array_equal(found.tissue, reference.tissue)


@pytest.mark.parametrize("levels", [255, 65535, 4095])
def test_a_full_depth_stays_and_so_does_a_dark_image_of_8_or_12_bits(image, levels):
    pixels = np.rint(image * levels).astype(np.float32) / np.float32(levels)
    np.testing.assert_array_equal(prepared(pixels).source.pixels, pixels)
    assert kinds(pixels) == []
    if levels != 65535:
        assert kinds(np.rint(pixels * 0.2 * levels).astype(np.float32) / np.float32(levels)) == []


def test_unknown_doubts_are_none_that_could_be_overruled(monkeypatch):
    with pytest.raises(OptionError, match="no doubt called 'colour' that could be overruled, only polarity, frame"):
        plausibility.use(["colour"])
    monkeypatch.setenv(plausibility.VARIABLE, "")
    assert plausibility.forced() == ()
    plausibility.use(["size", "polarity"])
    assert plausibility.forced() == ("size", "polarity")


def test_a_file_that_is_right_about_its_depth_can_be_believed(image):
    pixels = (np.rint(image * 4095) / 65535).astype(np.float32)
    found = prepared(pixels, 0.8, "depth")
    assert found.doubts == ()
    np.testing.assert_array_equal(found.source.pixels, pixels)
    assert found.stored.max() < 0.1


@pytest.mark.parametrize("flipped", [False, True])
def test_the_chest_wall_is_where_the_breast_is_highest(image, flipped):
    body = prepared(image[:, ::-1] if flipped else image).body
    columns = np.flatnonzero(body.any(axis=0))
    heights = body.sum(axis=0)
    truth = "left" if heights[columns[0]] > heights[columns[-1]] else "right"
    assert chest_wall(body) == truth
    assert chest_wall(np.rot90(body)) in ("", "left", "right")


def test_where_no_edge_is_the_chest_wall_nothing_is_said():
    assert chest_wall(np.zeros((9, 9), bool)) == ""
    assert chest_wall(np.ones((9, 9), bool)) == ""


def test_a_picture_that_is_turned_against_its_header_is_doubted(image):
    wall = chest_wall(prepared(image).body)
    other = {"left": "right", "right": "left"}[wall]
    for told, pixels, expected in ((wall, image, []), (other, image, ["side"]), (wall, image[:, ::-1], ["side"])):
        doubts = PREPROCESSING.prepare(Source(pixels.astype(np.float32), 0.8, wall=told)).doubts
        assert [doubt.kind for doubt in doubts] == expected


@pytest.mark.parametrize(("width", "value"), [(2, 1.0), (4, 0.5), (30, 0.8)])
def test_a_bright_frame_is_refused_and_a_dark_one_is_not(image, width, value):
    framed = np.pad(image, width, constant_values=value * image.max())
    with pytest.raises(ImageError, match="a frame, or no mammogram"):
        prepared(framed)
    assert "frame" in kinds(framed, 0.8, "frame", "polarity", "size")
    assert kinds(np.pad(image, width)) == []


def test_the_service_knows_every_doubt():
    assert get_args(plausibility.Kind) == tuple(plausibility.KINDS)
