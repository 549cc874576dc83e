"""Which images train, calibrate and test: by patient, from a hash of the patient id alone.

A patient's place depends on no other patient, so adding or removing some moves nobody. Healthy patients
(every image healthy) train, validate, calibrate and test. Half of the patients with a lesion are for choices
(development), half for the reported figures (test); the other choice would be the winner's curse. Their healthy
breasts go with them. None of them trains, unless a corpus mixes some of those for choices in on purpose.

Where a data set has parts of its own (`Exam.part`: folders called train and test, a column ``split`` of a table), its
test images are the test images, and the others are divided among what comes before a test.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Annotated

from rayad import catalog
from rayad.arrays import Image, Mask
from rayad.datasets.exam import Exam, Excluded, Images, Lesion, listed
from rayad.errors import OptionError
from rayad.options import Folds, Settings, Share, Within

LEARNING = ("train", "validation", "calibration")
"""Splits of healthy patients that come before a test."""
SPLITS = (*LEARNING, "test", "development")
"""All splits of images that have a label."""
EVERY = "every"
"""In the place of a split: all images that have a label."""
LABEL_FREE = "label-free"
"""In the place of a split: test and development, that is every diseased patient, where nothing is chosen on them."""
SEVERAL = {EVERY: SPLITS, LABEL_FREE: ("test", "development")}
"""What is given in the place of a split -> the splits that it stands for."""
PARTS = (*LEARNING, "test")
"""Into which the makers of a data set may have put an image."""
UNLABELLED = "unlabelled"
"""Split of images that take part in nothing, because nobody knows whether they are healthy."""
UNUSED = "unused"
"""Split of images that take part in nothing, because other images of their patient are the data set's test images."""


@dataclass(frozen=True)
class Division:
    """Shares of the patients in each split; who is left, healthy or not, is for the test."""

    train: Share = 0.60
    """Share of the healthy patients that are learned from."""
    validation: Share = 0.10
    """Share of the healthy patients with which one stops early and searches."""
    calibration: Share = 0.15
    """Share of the healthy patients to which p-values refer; 0: there are scores, and no p-values."""
    development: Share = 0.50
    """Share of the patients with a lesion that are for choices."""
    folds: Folds = 0
    """Parts of the healthy patients for cross-fitting, of which `fold` tests and the others come before it; 0: none."""
    fold: Annotated[int, Within(0, 99)] = 0
    """Which of them tests, from 0 on."""

    def __post_init__(self) -> None:
        if self.folds == 1 or self.fold >= max(1, self.folds):
            raise OptionError(
                f"folds are 2 or more, and a fold is one of 0 to folds - 1; these are fold {self.fold} of {self.folds}"
            )
        if (total := round(self.train + self.validation + self.calibration, 9)) > 1:
            raise OptionError(f"the shares of train, validation and calibration are at most 1 together, not {total:g}")
        if self.train <= 0:
            raise OptionError("the share of train is above 0: without healthy patients there is nothing to learn from")

    def healthy(self, splits: Sequence[str]) -> list[tuple[str, float]]:
        """Split of a healthy patient, of these, and the upper end of its share of [0, 1)."""
        rest = 1 - self.train - self.validation - self.calibration
        shares = {"train": self.train, "validation": self.validation, "calibration": self.calibration, "test": rest}
        total = sum(shares[split] for split in splits) or 1.0
        ends = [round(sum(shares[split] for split in splits[: n + 1]) / total, 9) for n in range(len(splits))]
        return list(zip(splits, ends, strict=True))

    def diseased(self) -> list[tuple[str, float]]:
        """The same for a patient with an anomalous image."""
        return [("development", self.development), ("test", 1.0)]


USUAL = Division()


def division(settings: Settings) -> Division:
    """Division that are given as NAME=VALUE, the usual ones otherwise; OptionError where one cannot be."""
    return catalog.of_settings(Division, "shares", settings)


def assign(exams: Iterable[Exam], division: Division = USUAL) -> dict[str, str]:
    """Exam id -> train, validation, calibration, test, development, unlabelled or unused.

    An image without a label is unlabelled, and with it all images of its patient, unless another image
    of that patient is anomalous: then those with a label are development or test. A split that a list of images
    gives (`Exam.split`) stays.
    """
    exams = list(exams)
    labels: dict[str, list[bool | None]] = defaultdict(list)
    parts: dict[str, set[str]] = defaultdict(set)
    for exam in exams:
        labels[exam.patient_id].append(exam.anomalous)
        parts[exam.patient_id].add(exam.part)
    all_parts = set().union(*parts.values())
    if division.folds and all_parts - {""}:
        raise OptionError("the data set has parts of its own, train and test, so that no folds of it can test")

    def of_exam(exam: Exam) -> str:
        others, own_parts = labels[exam.patient_id], parts[exam.patient_id] - {""}
        if exam.anomalous is None or (None in others and not any(others)):
            return UNLABELLED
        if "test" in own_parts:
            return "test" if exam.part in ("", "test") else UNUSED
        if any(others):
            return "development" if own_parts else _share_of(exam, division.diseased())
        if own_parts - {"train"}:
            return max(own_parts, key=LEARNING.index)
        if own_parts:  # divided among what the data set has no part for
            return _share_of(exam, division.healthy([s for s in LEARNING if s == "train" or s not in all_parts]))
        if division.folds:
            tests = int(_uniform(f"fold {exam.patient_id}") * division.folds) == division.fold
            return "test" if tests else _share_of(exam, division.healthy(LEARNING))
        return _share_of(exam, division.healthy(PARTS))

    return {exam.exam_id: exam.split or of_exam(exam) for exam in exams}


def mixed_in(exams: Iterable[Exam], splits: dict[str, str], share: float) -> dict[str, str]:
    """The splits where a share of the diseased patients for choices trains too, as in Mukesh et al. (2024)."""
    learned = {
        exam.exam_id
        for exam in exams
        if splits[exam.exam_id] == "development" and _uniform(f"mixed {exam.patient_id}") < share
    }
    return splits | dict.fromkeys(learned, "train")


@dataclass(frozen=True)
class Divided:
    """A data set whose patients are divided by other shares than the usual ones."""

    listed_from: Images
    """The data set."""
    division: Division

    def exams(self) -> list[Exam]:
        return self.listed()[0]

    def listed(self) -> tuple[list[Exam], list[Excluded]]:
        """The exams with their splits, and the files that are left out."""
        exams, left_out = listed(self.listed_from)
        splits = assign(exams, self.division)
        return [replace(exam, split=splits[exam.exam_id]) for exam in exams], left_out

    def pixels(self, exam: Exam) -> Image:
        return self.listed_from.pixels(exam)

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        return self.listed_from.lesion_mask(exam, lesion)


def divided(dataset: Images, division: Division) -> Images:
    """The data set by these shares; OptionError where it is a list of images, which has their splits."""
    if division == USUAL:
        return dataset
    if hasattr(dataset, "listed_from"):
        raise OptionError("a list of images has their splits, so no other shares can be given with it")
    return Divided(dataset, division)


def division_of(dataset: Images) -> Division:
    """How a data set's patients are divided."""
    return getattr(dataset, "division", USUAL)


def _share_of(exam: Exam, shares: Iterable[tuple[str, float]]) -> str:
    position = _uniform(exam.patient_id)
    return next(split for split, end in shares if position < end)


def _uniform(text: str) -> float:
    """A number in [0, 1) from the text's SHA-256; 53 bits, so that it never rounds to 1."""
    digest = sha256(text.encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
