"""Which image shows the other breast."""

from dataclasses import replace

from rayad.datasets.content import contents
from rayad.datasets.exam import Exam, source_of
from rayad.datasets.phantom import Dataset
from rayad.datasets.sides import with_other_sides
from rayad.errors import ImageError
from rayad.imaging.mammogram import Preprocessing


def exam(exam_id: str, patient: str, side: str, view: str = "MLO") -> Exam:
    return Exam(exam_id, patient, f"memory://{exam_id}", False, view, side, "", 0.2)


def test_the_other_breast_is_of_the_same_patient_in_the_same_view():
    exams = [
        exam("a-l-mlo", "a", "L"),
        exam("a-r-mlo", "a", "R"),
        exam("a-r-cc", "a", "R", "CC"),
        exam("b-l-mlo", "b", "L"),
        exam("b-r-1", "b", "R"),
        exam("b-r-2", "b", "R"),
        exam("c", "c", ""),
        exam("d", "c", ""),
    ]
    others = {e.exam_id: e.other and e.other.exam_id for e in with_other_sides(exams)}
    expected = {"a-l-mlo": "a-r-mlo", "a-r-mlo": "a-l-mlo", "a-r-cc": None, "b-l-mlo": "b-r-1"}
    assert others == expected | {"b-r-1": "b-l-mlo", "b-r-2": "b-l-mlo", "c": None, "d": None}
    (alone,) = with_other_sides(exams[:1])
    assert alone.other is None
    (found,) = with_other_sides(exams[:1], exams)
    assert found.other == exams[1]
    assert with_other_sides([found])[0].other is None  # it is looked for anew


def test_an_exam_is_made_of_its_other_side_too():
    dataset = Dataset(patients=2)
    exams = dataset.exams()
    paired = with_other_sides(exams)
    assert "other" not in exams[0].described()
    assert contents(dataset, exams) == contents(dataset, [replace(e, other=None) for e in paired])
    before, after = contents(dataset, paired), contents(dataset, exams)
    assert all(before[name] != after[name] for name in before)


def test_an_image_is_prepared_with_its_other_side_or_says_why_not():
    dataset = Dataset(patients=1)
    left, right = with_other_sides(dataset.exams())
    image = Preprocessing().prepare(source_of(dataset, left))
    assert image.other is not None
    assert (image.other.stored == Preprocessing().prepare(source_of(dataset, replace(right, other=None))).stored).all()
    assert image.other.other is None
    source = source_of(dataset, left)
    assert source.other is not None
    black = replace(source, other=replace(source.other, pixels=source.pixels * 0))
    prepared = Preprocessing().prepare(black)
    assert prepared.other is None
    assert [doubt.kind for doubt in prepared.doubts] == ["other"]
    assert "the other breast is left out: no breast in the image" in prepared.doubts[0].sentence


def test_an_other_side_that_cannot_be_read_is_left_out_with_its_reason():
    class Damaged(Dataset):
        def pixels(self, exam: Exam):
            if exam.laterality == "R":
                raise ImageError(f"{exam.url}: the file ends early")
            return super().pixels(exam)

    dataset = Damaged(patients=1)
    source = source_of(dataset, with_other_sides(dataset.exams())[0])
    assert source.other is None
    assert "the file ends early" in source.doubts[0].sentence
