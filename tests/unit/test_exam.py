"""Exams and lesions: circles, masks, order."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from rayad import storage
from rayad.datasets.exam import (
    Exam,
    Excluded,
    Lesion,
    circle_mask,
    in_order,
    read_grey,
    read_mask,
    reasons,
    shortened,
)
from rayad.errors import DatasetError


def exam(name: str, url: str = "memory://x.png") -> Exam:
    return Exam(name, name, url, True, "MLO", "L", "F", 0.2)


def store(url: str, pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    storage.write_bytes(url, buffer.getvalue())
    return url


def test_a_circle_holds_the_pixels_whose_centre_is_within_the_radius():
    mask = circle_mask((5, 6), (2.0, 1.0, 1.0))
    expected = np.zeros((5, 6), bool)
    for row, col in [(2, 1), (1, 1), (3, 1), (2, 0), (2, 2)]:
        expected[row, col] = True
    np.testing.assert_array_equal(mask, expected)


def test_a_circle_covers_its_area_and_ends_at_the_border():
    assert circle_mask((200, 200), (99.5, 99.5, 60.3)).sum() == pytest.approx(np.pi * 60.3**2, rel=0.005)
    assert circle_mask((200, 200), (0.0, 0.0, 60.3)).sum() == pytest.approx(np.pi * 60.3**2 / 4, rel=0.03)
    assert not circle_mask((20, 20), (50.0, 50.0, 10.0)).any()


def test_a_lesion_is_located_by_circle_or_mask():
    assert Lesion("mass", circle=(1.0, 2.0, 3.0)).located
    assert Lesion("mass", mask_url="memory://m.png").located
    assert not Lesion("mass").located


def test_a_lesion_without_a_place_has_no_mask():
    with pytest.raises(DatasetError, match=r"mdb059.*no mask for this mass"):
        read_mask(exam("mdb059"), Lesion("mass"), (8, 8))


def test_a_mask_file_goes_before_the_circle():
    drawn = np.zeros((9, 7), np.uint8)
    drawn[2:4, 5] = 1
    url = store("memory://exam/mask.png", drawn)
    mask = read_mask(exam("a"), Lesion("mass", circle=(4.0, 4.0, 2.0), mask_url=url), (9, 7))
    np.testing.assert_array_equal(mask, drawn > 0)


def test_a_colour_mask_counts_where_any_channel_is_above_zero():
    drawn = np.zeros((3, 4, 3), np.uint8)
    drawn[1, 2] = (0, 0, 9)
    mask = read_mask(exam("a"), Lesion("mass", mask_url=store("memory://exam/c.png", drawn)), (3, 4))
    np.testing.assert_array_equal(np.argwhere(mask), [[1, 2]])


def test_a_mask_of_another_shape_is_an_error():
    url = store("memory://exam/small.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DatasetError, match=r"small\.png: mask of \(4, 4\) px for .* of \(9, 7\) px"):
        read_mask(exam("a"), Lesion("mass", mask_url=url), (9, 7))


def test_grey_images_keep_their_depth():
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    pixels = read_grey(store("memory://exam/ramp.png", ramp))
    np.testing.assert_allclose(pixels * 65535, ramp, atol=0.02)


def test_exams_come_in_order_and_once():
    assert [e.exam_id for e in in_order([exam("b"), exam("a")])] == ["a", "b"]
    with pytest.raises(DatasetError, match=r"a: one image an exam .*a\.pgm, .*a\.png"):
        in_order([exam("a", "memory://a.png"), exam("b"), exam("a", "memory://a.pgm")])


def test_an_exam_pickles():
    one = Exam("a", "p", "u", None, "", "", "", 0.1, (Lesion("mass", "CIRC", True, (1.0, 2.0, 3.0)),))
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_message_names_a_few_and_counts_the_rest():
    assert shortened(["b", "a"]) == "a, b"
    assert shortened(f"{k}" for k in range(9)) == "0, 1, 2, 3, 4 and 4 more"


def test_numbers_of_reasons_are_hidden_where_they_differ():
    sentences = ["/a/1.png: 3.5 mm is no spacing", "/a/2.png: 40 mm is no spacing", "/a/3.png: it has 2 frames"]
    rows = reasons(Excluded(f"url-{number}", sentence) for number, sentence in enumerate(sentences))
    assert rows == [
        {"count": 2, "reason": "N mm is no spacing", "example": "url-0"},
        {"count": 1, "reason": "it has 2 frames", "example": "url-2"},
    ]
