"""A data set of which one image cannot be read."""

from dataclasses import dataclass, replace

from rayad.datasets import phantom
from rayad.errors import ImageError
from rayad.pipeline.score import exams_of


@dataclass(frozen=True)
class Damaged(phantom.Dataset):
    """Phantoms of which one cannot be read."""

    damaged: str = ""

    def pixels(self, exam):
        if exam.exam_id == self.damaged:
            raise ImageError(f"{exam.url}: the file ends early")
        return super().pixels(exam)


def damaged(split: str, diseased: float = 0.0, patients: int = 30) -> tuple[Damaged, str]:
    dataset = Damaged(patients=patients, diseased=diseased, height=256, width=192)
    first = exams_of(dataset, split)[0].exam_id
    return replace(dataset, damaged=first), first
