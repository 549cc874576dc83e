"""Whose labels teach: readings of findings, lesions that a data set has marked, or labels of images alone."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rayad.datasets import readings
from rayad.datasets.exam import Exam, Images, Lesion, listed
from rayad.datasets.splits import assign
from rayad.errors import DatasetError, OptionError
from rayad.pipeline.requests import TeachRequest
from rayad.terminal import say


@dataclass(frozen=True)
class Labelled:
    """An image with labels."""

    exam: Exam
    lesions: tuple[Lesion, ...] = ()
    """Where they are is known; none: it is known alone that there is one."""
    rejected: tuple[Lesion, ...] = ()
    """Findings that a reader rejected."""


def labelled_images(request: TeachRequest, dataset: Images) -> list[Labelled]:
    """The images whose labels teach, in the order of the data set.

    Images of calibration patients are none of them: their p-values would be of patients that were learned from. A line
    on the terminal says how many readings are left out for that.

    Raises:
        OptionError: fewer lesions than are wanted, patients that the data set does not have, or no label.
        DatasetError: see `readings.read`.
    """
    exams, _ = listed(dataset)
    splits = assign(exams)
    if request.readings:
        chosen = _of_readings(request.readings, exams, splits)
    else:
        candidates = _candidates(request, exams, splits)
        by_images = request.labels == "images"
        chosen = [Labelled(exam) for exam in candidates] if by_images else _marked(request, candidates)
    if not chosen:
        raise OptionError("there is no label to learn from: no image with a lesion of these kinds and patients")
    return chosen


def _of_readings(url: str, exams: Sequence[Exam], splits: Mapping[str, str]) -> list[Labelled]:
    read = readings.read(url, exams)
    reserved = [exam_id for exam_id in read if splits[exam_id] == "calibration"]
    if reserved:
        say(
            f"{url}: readings of {len(reserved)} images of calibration patients are left out, such as of "
            f"{reserved[0]}: these serve p-values alone",
            sys.stderr,
        )
    chosen = [exam for exam in exams if exam.exam_id in read and exam.exam_id not in reserved]
    return [Labelled(exam, read[exam.exam_id].accepted, read[exam.exam_id].rejected) for exam in chosen]


def _candidates(request: TeachRequest, exams: Sequence[Exam], splits: Mapping[str, str]) -> list[Exam]:
    """Images with a lesion of the wanted kinds, of the wanted patients or else of those for choices."""
    if unknown_patients := set(request.patients) - {exam.patient_id for exam in exams}:
        raise OptionError(f"the data set has {len(unknown_patients)} of the {len(request.patients)} patients not")
    return [
        exam
        for exam in exams
        if exam.anomalous
        and (exam.patient_id in request.patients if request.patients else splits[exam.exam_id] == "development")
        and (not request.lesions or any(lesion.kind in request.lesions for lesion in exam.lesions))
    ]


def _marked(request: TeachRequest, exams: Sequence[Exam]) -> list[Labelled]:
    """The lesions with a known place, or as many of them as are wanted, drawn by the seed."""
    located = [
        (exam.exam_id, lesion)
        for exam in exams
        for lesion in exam.lesions
        if lesion.located and (not request.lesions or lesion.kind in request.lesions)
    ]
    if request.marked > len(located):
        raise OptionError(f"{request.marked} marked lesions are wanted, there are {len(located)} with a known place")
    order = np.random.default_rng(request.seed).permutation(len(located))[: request.marked or len(located)]
    drawn = [located[n] for n in sorted(order)]
    by_exam = [(exam, tuple(lesion for exam_id, lesion in drawn if exam_id == exam.exam_id)) for exam in exams]
    return [Labelled(exam, lesions) for exam, lesions in by_exam if lesions]


def healthy_images(dataset: Images, labelled: Sequence[Labelled]) -> list[Exam]:
    """Images of healthy training and validation patients, but for those with labels.

    Raises:
        DatasetError: there is none.
    """
    exams, _ = listed(dataset)
    splits, with_labels = assign(exams), {image.exam.exam_id for image in labelled}
    chosen = [
        exam
        for exam in exams
        if splits[exam.exam_id] in ("train", "validation")
        and exam.anomalous is False
        and exam.exam_id not in with_labels
    ]
    if not chosen:
        raise DatasetError(f"no image of {len(exams)} is of a healthy patient in the train or validation split")
    return chosen
