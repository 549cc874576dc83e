"""Patients' identifiers: what seems not to tell them apart is said, and none is named."""

import pytest

from rayad.datasets.identity import warn_of_odd
from rayad.terminal import warn_once


@pytest.fixture(autouse=True)
def _anew():
    warn_once.cache_clear()


@pytest.mark.parametrize(
    ("ids", "number"),
    [
        (("0012", "12"), 1),
        (("P-7", "p_07", "p 7"), 2),
        (("Müller", "MÜLLER", "Meier"), 1),
        (("1-12", "11-2"), 0),
        (("12", "120", "102"), 0),
        (("A", "B", ""), 0),
    ],
)
def test_spellings_of_one_patient_are_counted_and_not_named(capsys, ids, number):
    warn_of_odd([*ids, *ids])
    warn_of_odd(ids)
    said = capsys.readouterr().err
    assert said.count("\n") == bool(number)
    assert said.startswith(f"rayad: {number} of {len(ids)} patients" if number else "")
    assert not any(one in said for one in ids if len(one) > 1)


def test_one_patient_of_many_images_is_said(capsys):
    warn_of_odd(["secret"] * 9)
    assert capsys.readouterr().err == "rayad: all 9 images are of one patient; splits are by patient\n"
    warn_of_odd(["other"] * 8)
    assert capsys.readouterr().err == ""


def test_images_that_are_a_patient_each_are_said(capsys):
    warn_of_odd([f"scan {letter}" for letter in "abcdefghi"])
    assert capsys.readouterr().err.startswith("rayad: each of 9 images is a patient of its own; if some are of one,")
