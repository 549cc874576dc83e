"""Splits by patient: shares, stability, and nobody on both sides."""

import hashlib
from collections import Counter

from rayad.datasets.exam import Exam
from rayad.datasets.splits import assign


def exam(patient: str, name: str, anomalous: bool | None) -> Exam:
    return Exam(f"{patient}/{name}", patient, "memory://x", anomalous, "MLO", "L", "", 0.2)


def both_breasts(patients: int, anomalous: bool | None = False, prefix: str = "p") -> list[Exam]:
    return [exam(f"{prefix}{k}", side, anomalous) for k in range(patients) for side in "LR"]


def test_healthy_patients_split_60_10_15_15():
    counts = Counter(assign(both_breasts(4000)).values())
    for split, share in {"train": 0.60, "validation": 0.10, "calibration": 0.15, "test": 0.15}.items():
        assert abs(counts[split] / 8000 - share) < 0.03  # four standard deviations are 0.031, 0.019, 0.023


def test_diseased_patients_split_in_halves_and_never_train():
    counts = Counter(assign(both_breasts(2000, anomalous=True)).values())
    assert set(counts) == {"development", "test"}
    assert abs(counts["development"] / 4000 - 0.5) < 0.045


def test_all_images_of_a_patient_are_in_one_split():
    splits = assign(both_breasts(300))
    assert all(splits[f"p{k}/L"] == splits[f"p{k}/R"] for k in range(300))


def test_the_healthy_breast_of_a_diseased_patient_goes_with_the_diseased_one():
    exams = [exam(f"p{k}", side, side == "R") for k in range(200) for side in "LR"]
    splits = assign(exams)
    assert {splits[f"p{k}/L"] for k in range(200)} == {"development", "test"}
    assert all(splits[f"p{k}/L"] == splits[f"p{k}/R"] for k in range(200))


def test_adding_patients_and_order_move_nobody():
    before = assign(both_breasts(100))
    more = both_breasts(100) + both_breasts(500, prefix="new") + both_breasts(50, anomalous=True, prefix="ill")
    assert before.items() <= assign(reversed(more)).items()


def test_the_split_is_the_hash_of_the_patient_id():
    for patient in ("mdb001-002", "mdb003-004", "übung"):
        at = int(hashlib.sha256(patient.encode()).hexdigest()[:16], 16) / 2**64
        healthy = "train" if at < 0.6 else "validation" if at < 0.7 else "calibration" if at < 0.85 else "test"
        assert assign([exam(patient, "L", False)]) == {f"{patient}/L": healthy}
        diseased = "development" if at < 0.5 else "test"
        assert assign([exam(patient, "L", True)]) == {f"{patient}/L": diseased}


def test_unknown_labels_take_part_in_nothing():
    exams = [exam("a", "L", None), exam("b", "L", False), exam("b", "R", None)]
    assert set(assign(exams).values()) == {"unlabelled"}


def test_an_unlabelled_image_of_a_diseased_patient_stays_unlabelled_alone():
    splits = assign([exam("a", "L", True), exam("a", "R", None), exam("a", "L2", False)])
    assert splits["a/R"] == "unlabelled"
    assert splits["a/L"] == splits["a/L2"] in ("development", "test")


def test_no_exams_no_splits():
    assert assign([]) == {}
