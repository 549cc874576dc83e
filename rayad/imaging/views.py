"""Views of a mammogram and sides of the body, as tables, headers and people write them."""

import re
from collections.abc import Mapping

Shown = tuple[str, str, str]
"""Patient, view, and side (L, R or "") that an image shows."""
OPPOSITE = {"L": "R", "R": "L"}
WORDS = {
    "MLO": ("mlo", "oblique", "mediolateraloblique", "mediolateralobliqueview", "schräg", "schrägaufnahme"),
    "CC": ("cc", "craniocaudal", "cranialcaudal", "kraniokaudal"),
    "ML": ("ml", "mediolateral", "lateral"),
    "LM": ("lm", "lateromedial"),
    "LMO": ("lmo", "lateromedialoblique"),
    "XCCL": ("xccl", "exaggeratedcraniocaudallateral"),
    "XCCM": ("xccm", "exaggeratedcraniocaudalmedial"),
    "FB": ("fb", "frombelow", "caudocranial"),
    "SIO": ("sio", "superolateraltoinferomedialoblique"),
    "ISO": ("iso", "inferomedialtosuperolateraloblique"),
    "AT": ("at", "axillarytail"),
    "CV": ("cv", "cleavage", "valley"),
}
"""View -> words for it, small letters alone (DICOM PS3.16, CID 4014)."""
SIDES = {"L": ("l", "left", "links", "gauche", "izquierda"), "R": ("r", "right", "rechts", "droite", "derecha")}
"""Side -> words for it."""
_VIEW = {word: view for view, words in WORDS.items() for word in words}
_SIDE = {word: side for side, words in SIDES.items() for word in words}


def side(text: str) -> str:
    """L, R, or "" of an empty text; ValueError where the text is no side."""
    word = _letters(text)
    if word and word not in _SIDE:
        raise ValueError(f"{text!r} is no side, such as L, R, left or right")
    return _SIDE.get(word, "")


def view(text: str) -> tuple[str, str]:
    """View and side that a text names, such as "MLO" and "R" of RMLO, R-MLO, MLO_R or right mlo; "" where it does not.

    Raises:
        ValueError: the text is not empty and names no view.
    """
    word = _letters(text)
    if not word:
        return "", ""
    if word in _VIEW:
        return _VIEW[word], ""
    for word_of_side, letter in _SIDE.items():
        for rest in (word.removeprefix(word_of_side), word.removesuffix(word_of_side)):
            if rest != word and rest in _VIEW:
                return _VIEW[rest], letter
    raise ValueError(f"{text!r} is no view of a breast, such as {', '.join(WORDS)}")


def other_sides(images: Mapping[str, Shown]) -> dict[str, str]:
    """Image -> that of the same patient's other breast in the same view, where there is one; of several, the first."""
    first: dict[Shown, str] = {}
    for name in sorted(images):
        first.setdefault(images[name], name)
    opposite = {name: (patient, view, OPPOSITE.get(side, "none")) for name, (patient, view, side) in images.items()}
    return {name: first[shown] for name, shown in opposite.items() if shown in first}


def _letters(text: str) -> str:
    return re.sub(r"[\W\d_]+", "", text).lower()
