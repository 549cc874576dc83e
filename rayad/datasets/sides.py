"""The two breasts of a patient: which image shows the other one in the same view."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from rayad.datasets.exam import Exam

OPPOSITE = {"L": "R", "R": "L"}


def with_other_sides(exams: Iterable[Exam], among: Sequence[Exam] = ()) -> list[Exam]:
    """The exams, each with that of the same patient's other breast in the same view, where there is one.

    Of several, as after years, the one whose id comes first. An exam without a side has no other.

    Args:
        among: where the other breasts are looked for, beside the exams themselves.
    """
    exams = list(exams)
    first: dict[tuple[str, str, str], Exam] = {}
    for exam in sorted([*exams, *among], key=lambda exam: exam.exam_id):
        first.setdefault((exam.patient_id, exam.view, exam.laterality), replace(exam, other=None))
    return [
        replace(exam, other=first.get((exam.patient_id, exam.view, OPPOSITE.get(exam.laterality, "none"))))
        for exam in exams
    ]
