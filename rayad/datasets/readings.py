"""readings.csv: what a reader said of findings, a row a finding.

Its columns are ``image`` (the image's name in the data set, or its base name where that is unique), ``row``, ``col``
and ``radius`` of a circle, px of the image as it came, and ``reading``: accepted or rejected. ``detector`` and
``sha256`` may say which detector found it, and the hash of its detector.json; they teach nothing. Separators, encodings
and numbers may be those of other programs (rayad/tables.py).
"""

import math
import posixpath
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from rayad import tables
from rayad.datasets.exam import Exam, Lesion, shortened
from rayad.datasets.labels import ALIKE
from rayad.errors import DatasetError
from rayad.terminal import warn_once

COLUMNS = ("image", "row", "col", "radius", "reading")
ORIGIN = ("detector", "sha256")
ACCEPTED = {"accepted": True, "rejected": False}
"""Words of a reading -> whether it is a lesion."""
FARTHEST_PX = 100_000
"""Of a circle's centre from the first pixel, and its largest radius."""


@dataclass(frozen=True)
class Readings:
    """What was said of the findings of one image."""

    accepted: tuple[Lesion, ...] = ()
    rejected: tuple[Lesion, ...] = ()


def read(url: str, exams: Sequence[Exam]) -> dict[str, Readings]:
    """exam_id -> its findings that were accepted and rejected.

    Raises:
        DatasetError: no table of readings, a cell that cannot be understood, an image that is not there or has the name
            of another, a finding that is both accepted and rejected, or no finding.
    """
    header, rows, separator = tables.cells(url)
    _require_columns(url, header, separator)
    names = _names(exams)
    circles: dict[str, dict[tuple[float, float, float], bool]] = defaultdict(dict)
    for number, values in enumerate(rows, start=1):
        where = f"{url}: row {number}"
        if len(values) != len(header):
            raise DatasetError(f"{where} needs {len(header)} cells; {separator!r} separates them")
        row = dict(zip(header, values, strict=True))
        exam_id, circle, accepted = _exam_id(where, row["image"], names), _circle(where, row), _reading(where, row)
        if circles[exam_id].setdefault(circle, accepted) != accepted:
            raise DatasetError(f"{where}: a finding of {row['image']} that was accepted and rejected")
    if not circles:
        raise DatasetError(f"{url}: has no row, a finding with its reading is wanted")
    return {exam_id: Readings(_marked(own, True), _marked(own, False)) for exam_id, own in circles.items()}


def _require_columns(url: str, header: Sequence[str], separator: str) -> None:
    if missing := [name for name in COLUMNS if name not in header]:
        raise DatasetError(
            f"{url}: columns {', '.join(header)}, separated by {separator!r}; wanted {', '.join(COLUMNS)}, and "
            f"{missing[0]} is not there"
        )
    unused_columns = [name for name in header if name not in (*COLUMNS, *ORIGIN)]
    for name in unused_columns:
        if similar := get_close_matches(name, [column for column in ORIGIN if column not in header], 1, ALIKE):
            raise DatasetError(f"{url}: a column {name!r}; is {similar[0]} meant?")
    if unused_columns:
        warn_once(f"{url}: columns that are not used: {', '.join(unused_columns)}")


def _names(exams: Sequence[Exam]) -> dict[str, set[str]]:
    """What an image may be called -> the exams that it could be."""
    names: dict[str, set[str]] = defaultdict(set)
    for exam in exams:
        for name in (exam.exam_id, exam.url):
            base = posixpath.basename(name)
            for spelling in {base, posixpath.splitext(base)[0]}:
                names[spelling].add(exam.exam_id)
    return names | {exam.exam_id: {exam.exam_id} for exam in exams}


def _exam_id(where: str, image: str, names: Mapping[str, set[str]]) -> str:
    """The exam of this name, or else of its base name."""
    path = image.replace("\\", "/")
    base = posixpath.basename(path)
    exam_ids = names.get(path) or names.get(base) or names.get(posixpath.splitext(base)[0]) or set()
    if not exam_ids:
        raise DatasetError(f"{where}: the data set has no image {image!r}")
    if len(exam_ids) > 1:
        raise DatasetError(f"{where}: {image!r} may be {shortened(exam_ids)}; give the name that the data set has")
    return next(iter(exam_ids))


def _circle(where: str, row: Mapping[str, str]) -> tuple[float, float, float]:
    values = {column: tables.number(row[column]) for column in ("row", "col", "radius")}
    for column, value in values.items():
        if math.isnan(value) or abs(value) > FARTHEST_PX:
            raise DatasetError(f"{where}: {column} {row[column]!r} is not a number of px")
    if values["radius"] <= 0:
        raise DatasetError(f"{where}: radius {row['radius']} is not above 0")
    return values["row"], values["col"], values["radius"]


def _reading(where: str, row: Mapping[str, str]) -> bool:
    word = row["reading"].lower()
    if word not in ACCEPTED:
        raise DatasetError(f"{where}: reading {row['reading'][:60]!r} is not {' or '.join(ACCEPTED)}")
    return ACCEPTED[word]


def _marked(circles: Mapping[tuple[float, float, float], bool], accepted: bool) -> tuple[Lesion, ...]:
    kind = "accepted" if accepted else "rejected"
    return tuple(Lesion(kind, circle=circle) for circle, reading in circles.items() if reading == accepted)
