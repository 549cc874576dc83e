"""Which images train, calibrate and test: by patient, from a hash of the patient id alone.

A patient's place depends on no other patient, so adding or removing some moves nobody. Healthy patients
(every image healthy) train, validate, calibrate and test. Patients with a lesion never train: half of them
are for choices (development), half for the reported figures (test); the other choice would be the
winner's curse. Their healthy breasts go with them.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from rayad.datasets.exam import Exam

HEALTHY = (("train", 0.60), ("validation", 0.70), ("calibration", 0.85), ("test", 1.0))
"""Split of a healthy patient and the upper end of its share of [0, 1)."""
DISEASED = (("development", 0.5), ("test", 1.0))
"""The same for a patient with an anomalous image."""
SPLITS = tuple(dict.fromkeys(name for name, _ in (*HEALTHY, *DISEASED)))
"""All of these, of images that have a label."""
UNLABELLED = "unlabelled"
"""Split of images that take part in nothing, because nobody knows whether they are healthy."""


def assign(exams: Iterable[Exam]) -> dict[str, str]:
    """Exam id -> train, validation, calibration, test, development or unlabelled.

    An image without a label is unlabelled, and with it all images of its patient, unless another image
    of that patient is anomalous: then those with a label are development or test.
    """
    exams = list(exams)
    labels: dict[str, list[bool | None]] = defaultdict(list)
    for exam in exams:
        labels[exam.patient_id].append(exam.anomalous)
    split = {patient_id: _of_patient(patient_id, anomalous) for patient_id, anomalous in labels.items()}
    return {e.exam_id: UNLABELLED if e.anomalous is None else split[e.patient_id] for e in exams}


def _of_patient(patient_id: str, anomalous: list[bool | None]) -> str:
    if any(anomalous):
        shares = DISEASED
    elif None in anomalous:
        return UNLABELLED
    else:
        shares = HEALTHY
    position = _uniform(patient_id)
    return next(split for split, end in shares if position < end)


def _uniform(text: str) -> float:
    """A number in [0, 1) from the text's SHA-256; 53 bits, so that it never rounds to 1."""
    digest = hashlib.sha256(text.encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
