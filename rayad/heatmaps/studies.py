"""The images of a patient taken together: one score, one p-value, and what is said of each.

A study scores as high as the highest of its images. A calibration patient has at least n images; up to n images of a
healthy patient are as likely as each of the K to have the highest score of all K + 1, or less likely. More than n are
taken as groups of at most n, each of which gets the p-value of the highest score at the lowest, and the p-value of
the study is theirs by Bonferroni: p = min(1, ceil(m / n) p(highest)), valid however a patient's images depend on
each other.
"""

import math
from collections.abc import Iterable, Sequence

from rayad.errors import ImageError
from rayad.heatmaps.answers import Answer, Study, StudyImage
from rayad.scoring.rule import ABNORMAL, NORMAL

MOST = 16
"""Images of a study."""


def study_p(patient_p: float, images: int, images_each: int) -> float:
    """p of a study of so many images.

    Args:
        patient_p: of its highest image, among the highest of each healthy patient.
        images: of the study, at least 1.
        images_each: of each healthy patient at least.
    """
    return min(1.0, math.ceil(images / images_each) * patient_p)


def require_one_patient(patients: Iterable[str]) -> None:
    """ImageError where images are of several patients.

    Args:
        patients: hash of each image's patient, empty where its file does not name one.
    """
    if (number := len(set(patients) - {""})) > 1:
        raise ImageError(f"the images of a study are of one patient; the files name {number}")


def study(images: Sequence[StudyImage]) -> Study:
    """What is said of the images together.

    Raises:
        ImageError: none of them was scored.
    """
    answers: list[Answer] = [image.answer for image in images if image.answer]
    if not answers:
        raise ImageError("; ".join(f"image {number}: {image.problem}" for number, image in enumerate(images, 1)))
    highest = max(answers, key=lambda answer: answer.score)
    assert highest.patient_p_value is not None  # a judgement of this server
    groups = len(answers), highest.patient_images
    verdicts = {answer.verdict for answer in answers}
    return Study(
        score=highest.score,
        p_value=study_p(highest.patient_p_value, *groups),
        p_value_floor=study_p(highest.p_value_floor, *groups),
        calibration_patients=highest.calibration_patients,
        verdict=ABNORMAL if ABNORMAL in verdicts else NORMAL if NORMAL in verdicts else "",
        images=tuple(images),
        failed=len(images) - len(answers),
    )
