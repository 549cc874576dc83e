"""The test images of the paper: measures by brute force, every reading's count, and what is said where none is left."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from rayad.datasets.exam import Exam, Lesion
from rayad.errors import DatasetError, OptionError
from rayad.pipeline.selection import READINGS, measure, select
from rayad.pool import Here

SHAPE, SPACING = (200, 160), 0.1
BOXES = {  # kind, first row and column, height and width in px
    "small": ("mass", 20, 20, 30, 30),
    "long": ("mass", 20, 20, 5, 90),
    "large": ("mass", 20, 20, 90, 90),
    "specks": ("calcification", 50, 50, 20, 40),
    "cut": ("calcification", 0, 50, 20, 30),
    "wide": ("calcification", 50, 10, 90, 100),
}


@dataclass(frozen=True)
class Drawn:
    """Images whose lesions are boxes."""

    def exams(self) -> list[Exam]:
        lesions = {name: (Lesion(kind, name, mask_url=f"memory://{name}"),) for name, (kind, *_) in BOXES.items()}
        lesions["two"] = (lesions["small"][0], lesions["long"][0])
        lesions["lost"] = (Lesion("mass", "lost"),)
        return [
            Exam(name, name, f"memory://{name}", True, "CC", "L", "", SPACING, of_image, part="test")
            for name, of_image in sorted(lesions.items())
        ]

    def pixels(self, exam: Exam) -> np.ndarray:
        raise AssertionError("no image is read")

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> np.ndarray:
        mask = np.zeros(SHAPE, bool)
        _, row, column, height, width = BOXES[lesion.finding]
        mask[row : row + height, column : column + width] = True
        return mask


def test_what_a_lesion_measures():
    measures = dict(
        zip((exam.exam_id for exam in Drawn().exams()), measure(Here(), Drawn(), Drawn().exams()), strict=True)
    )
    for name, (_, row, column, height, width) in BOXES.items():
        (found,) = measures[name]
        assert (found.area_px, found.area_mm2) == (height * width, pytest.approx(height * width * SPACING**2))
        assert (found.height_mm, found.width_mm) == pytest.approx((height * SPACING, width * SPACING))
        assert found.touches_border == (row == 0 or column == 0)
    together = np.logical_or(
        *(
            Drawn().lesion_mask(Drawn().exams()[0], lesion)
            for lesion in next(exam for exam in Drawn().exams() if exam.exam_id == "two").lesions
        )
    ).sum()
    assert [found.together_mm2 for found in measures["two"]] == pytest.approx([together * SPACING**2] * 2)
    assert measures["lost"] == ("a mass without a mask",)


@pytest.mark.parametrize("side_mm", [2.0, 4.0])
def test_every_reading_is_counted_and_the_chosen_one_kept(side_mm):
    def kept(name: str, rule: str) -> bool:
        _, row, column, height, width = BOXES[name]
        area, longest = height * width * SPACING**2, max(height, width) * SPACING
        return {"area": area < 4 * side_mm**2, "box": longest <= 2 * side_mm, "whole": row > 0 and column > 0}[rule]

    selection = select(Here(), Drawn(), Drawn().exams(), {"mass": "area", "calcification": "box"}, side_mm)
    counts = {(count.kind, count.reading): count for count in selection.counts}
    assert counts.keys() == {(reading.kind, reading.name) for reading in READINGS}
    for (kind, name), count in counts.items():
        names = [box for box, (of, *_) in BOXES.items() if of == kind]
        if name != "together":
            both = name == "area" and any(kept(box, name) for box in ("small", "long"))
            both |= name == "box" and any(kept(box, name) for box in ("small", "long"))
            assert count.images == sum(kept(box, name) for box in names) + (kind == "mass" and both)
        assert count.chosen == ((kind, name) in {("mass", "area"), ("calcification", "box")})
    ids = {exam.exam_id for exam in selection.exams}
    assert ids - {"two"} == {box for box, (kind, *_) in BOXES.items() if kept(box, "area" if kind == "mass" else "box")}
    assert "lost" not in ids
    assert any(exclusion.reason == "a mass without a mask" for exclusion in selection.left_out)


def test_a_lesion_that_is_not_kept_is_neither_healthy_nor_of_its_kind():
    selection = select(Here(), Drawn(), Drawn().exams(), {"mass": "box", "calcification": "box"}, 2.0)
    two = next(exam for exam in selection.exams if exam.exam_id == "two")
    assert [(lesion.kind, lesion.located) for lesion in two.lesions] == [("mass", True), ("other", True)]


def test_what_leaves_nothing_is_said_with_all_counts():
    with pytest.raises(
        DatasetError, match=r"no image of 8 has calcifications that fit .*mass area 0.*calcification whole"
    ):
        select(Here(), Drawn(), Drawn().exams(), {"calcification": "box"}, 0.1)
    lost = [replace(exam, lesions=(Lesion("mass"),)) for exam in Drawn().exams()]
    with pytest.raises(
        DatasetError, match="masks of lesions are wanted to select test images, none of 8 images has one"
    ):
        select(Here(), Drawn(), lost, {"mass": "area"}, 2.0)
    with pytest.raises(OptionError, match="no reading mass=width; there are mass=area, "):
        select(Here(), Drawn(), Drawn().exams(), {"mass": "width"}, 2.0)
