"""Splits by patient: shares, stability, and nobody on both sides."""

import hashlib
from collections import Counter
from dataclasses import replace

import pytest

from rayad import storage
from rayad.datasets import exams as lists
from rayad.datasets import folder, phantom
from rayad.datasets.exam import Exam
from rayad.datasets.splits import Division, assign, divided, division, division_of, mixed_in
from rayad.errors import OptionError


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


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_diseased_patients_for_choices_is_mixed_in(share):
    exams = [*both_breasts(200), *both_breasts(2000, anomalous=True, prefix="d")]
    before = assign(exams)
    after = mixed_in(exams, before, share)
    moved = {name for name in before if before[name] != after[name]}
    development = [name for name, split in before.items() if split == "development"]
    assert {after[name] for name in moved} <= {"train"}
    assert moved <= set(development)
    assert all((f"{name[:-1]}L" in moved) == (f"{name[:-1]}R" in moved) for name in development)
    assert abs(len(moved) / len(development) - share) < 0.06  # four standard deviations of 1,000 patients are 0.055


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


def of_part(exams: list[Exam], part: str) -> list[Exam]:
    return [replace(exam, part=part) for exam in exams]


def test_shares_are_those_that_are_given():
    given = division(("train=0.9", "validation=0.1", "calibration=0"))
    assert given == Division(0.9, 0.1, 0.0)
    counts = Counter(assign(both_breasts(4000), given).values())
    assert counts.keys() == {"train", "validation"}
    assert abs(counts["train"] / 8000 - 0.9) < 0.02
    assert set(assign(both_breasts(50, anomalous=True), Division(development=0.0)).values()) == {"test"}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("train=0.9", "validation=0.2"), "at most 1 together, not 1.25"),
        (("train=0",), "train is above 0"),
        (("train=2",), "at most 1 together"),
        (("test=0.2",), "shares has no 'test'; it has train, validation, calibration, development"),
        (("train",), "NAME=VALUE"),
        (("development=-1",), "shares: development must be"),
        (("folds=1",), "folds are 2 or more"),
        (("folds=3", "fold=3"), "these are fold 3 of 3"),
        (("fold=1",), "these are fold 1 of 0"),
    ],
)
def test_shares_that_cannot_be_are_one_sentence(settings, reason):
    with pytest.raises(OptionError, match=reason):
        division(settings)


def test_every_healthy_patient_tests_in_one_fold_and_in_the_others_comes_before_it():
    healthy, ill = both_breasts(1000), both_breasts(100, True, "i")
    folds = [assign(healthy + ill, Division(folds=5, fold=fold)) for fold in range(5)]
    for exam in healthy:
        splits = [splits[exam.exam_id] for splits in folds]
        assert splits.count("test") == 1
        assert set(splits) <= {"train", "validation", "calibration", "test"}
    usual = assign(ill)
    assert all(splits[exam.exam_id] == usual[exam.exam_id] for splits in folds for exam in ill)
    for splits in folds:
        counts = Counter(splits[exam.exam_id] for exam in healthy)
        for split, share in {"test": 0.2, "train": 0.8 * 60 / 85, "calibration": 0.8 * 15 / 85}.items():
            assert abs(counts[split] / 2000 - share) < 0.05
    with pytest.raises(OptionError, match="parts of its own"):
        assign(of_part(healthy, "train"), Division(folds=2))


def test_parts_of_the_data_set_are_kept():
    healthy = of_part(both_breasts(900), "train") + of_part(both_breasts(100, prefix="t"), "test")
    ill = of_part(both_breasts(50, True, "i"), "train") + of_part(both_breasts(50, True, "j"), "test")
    splits = assign(healthy + ill)
    assert {name for name, split in splits.items() if split == "test"} == {
        exam.exam_id for exam in healthy + ill if exam.part == "test"
    }
    assert {splits[exam.exam_id] for exam in ill} == {"development", "test"}
    counts = Counter(splits[exam.exam_id] for exam in healthy if exam.part == "train")
    for split, share in {"train": 60 / 85, "validation": 10 / 85, "calibration": 15 / 85}.items():
        assert abs(counts[split] / 1800 - share) < 0.05


def test_a_part_for_validation_is_not_made_of_other_images():
    exams = of_part(both_breasts(400), "train") + of_part(both_breasts(40, prefix="v"), "validation")
    splits = assign(exams)
    assert {name[0] for name, split in splits.items() if split == "validation"} == {"v"}
    assert {split for name, split in splits.items() if name[0] == "p"} == {"train", "calibration"}


def test_nobody_is_in_two_parts():
    exams = of_part([exam("a", "L", False)], "train") + of_part([exam("a", "R", False)], "test")
    exams += of_part([exam("b", "L", True)], "train") + of_part([exam("b", "R", True)], "test")
    assert assign(exams) == {"a/L": "unused", "a/R": "test", "b/L": "unused", "b/R": "test"}
    learning = of_part([exam("c", "L", False)], "train") + of_part([exam("c", "R", False)], "calibration")
    assert set(assign(learning).values()) == {"calibration"}


def test_a_list_keeps_the_splits_that_it_was_made_with(tmp_path):
    whole = divided(phantom.Dataset(patients=40), Division(0.9, 0.1, 0.0))
    listed = lists.listed_once(whole, str(tmp_path))
    splits = assign(listed.exams())
    assert splits == assign(phantom.Dataset(patients=40).exams(), Division(0.9, 0.1, 0.0))
    assert "calibration" not in splits.values()
    assert division_of(listed) == division_of(whole) == Division(0.9, 0.1, 0.0)
    with pytest.raises(OptionError, match="a list of images has their splits"):
        divided(listed, Division(0.5))


def test_a_column_says_the_part(tmp_path):
    dataset = phantom.Dataset(patients=4, height=64, width=64)
    exams = [replace(exam, part="test" if n % 2 else "train") for n, exam in enumerate(dataset.exams())]
    folder.export(dataset, exams, str(tmp_path))
    assert [exam.part for exam in folder.Dataset(str(tmp_path)).exams()] == [exam.part for exam in exams]
    table = storage.read_bytes(f"{tmp_path}/labels.csv").decode()
    storage.write_bytes(f"{tmp_path}/labels.csv", table.replace(",train", ",fold3").encode())
    with pytest.raises(folder.DatasetError, match="split 'fold3' is not train, validation, calibration, test"):
        folder.Dataset(str(tmp_path)).exams()
