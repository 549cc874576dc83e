"""The two breasts of a patient: which image shows the other one in the same view."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from rayad.datasets.exam import Exam
from rayad.imaging.views import other_sides


def with_other_sides(exams: Iterable[Exam], among: Sequence[Exam] = ()) -> list[Exam]:
    """The exams, each with that of the same patient's other breast in the same view, where there is one.

    Of several, as after years, the one whose id comes first. An exam without a side has no other.

    Args:
        among: where the other breasts are looked for, beside the exams themselves.
    """
    exams = [replace(exam, other=None) for exam in exams]
    by_id = {exam.exam_id: replace(exam, other=None) for exam in (*exams, *among)}
    others = other_sides({name: (exam.patient_id, exam.view, exam.laterality) for name, exam in by_id.items()})
    return [replace(exam, other=by_id.get(others.get(exam.exam_id, ""))) for exam in exams]
