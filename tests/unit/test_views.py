"""Views and sides by every name that they have."""

import pytest

from rayad.imaging.views import WORDS, side, view

NAMED = {
    "mlo": ("MLO", ""),
    " MLO ": ("MLO", ""),
    "RMLO": ("MLO", "R"),
    "L-MLO": ("MLO", "L"),
    "mlo_l": ("MLO", "L"),
    "right cc": ("CC", "R"),
    "LEFT_CC": ("CC", "L"),
    "OBLIQUE": ("MLO", ""),
    "medio-lateral oblique": ("MLO", ""),
    "Cranio-Caudal": ("CC", ""),
    "LCC": ("CC", "L"),
    "LM": ("LM", ""),
    "RLM": ("LM", "R"),
    "LMLO": ("MLO", "L"),
    "LLMO": ("LMO", "L"),
    "": ("", ""),
}


@pytest.mark.parametrize(("text", "found"), NAMED.items())
def test_a_view_is_known_by_every_name(text, found):
    assert view(text) == found


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("letter", ["", "L", "R"])
def test_a_side_before_a_view_is_not_taken_for_a_part_of_it(name, letter):
    found = view(letter + name)
    assert found in {(name, letter), (letter + name, "")}


@pytest.mark.parametrize("text", ["foo", "left", "R", "unknown", "MLOCC"])
def test_other_words_are_no_view(text):
    with pytest.raises(ValueError, match="is no view of a breast, such as MLO, CC"):
        view(text)


@pytest.mark.parametrize(("text", "found"), [("l", "L"), ("LEFT", "L"), (" R ", "R"), ("rechts", "R"), ("", "")])
def test_a_side_is_known_by_every_name(text, found):
    assert side(text) == found


def test_another_word_is_no_side():
    with pytest.raises(ValueError, match="'both' is no side"):
        side("both")
