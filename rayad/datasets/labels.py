"""labels.csv: a table of what is in a folder's images, a row an image or a row a lesion.

It has at least the column ``image``, the file's path below the folder, whose ending may be missing. The other columns
may be missing or empty: ``patient``, ``label`` (normal or anomalous), ``view``, ``laterality`` (L or R), ``density``,
``spacing_mm``, ``split`` (train, validation, calibration or test: rayad/datasets/splits.py), and of a lesion ``kind``,
``finding``, ``malignant`` (yes or no), and where it is: ``mask`` (path of an image of two values, the higher is the
lesion), ``polygon`` (column and row of each corner in px, as COCO has them: ``12 30 14.5 31 13 35``), ``left``,
``top``, ``right`` and ``bottom`` of a box, or ``row``, ``col`` and ``radius`` of a circle. No message quotes the column
``patient``.

Tables come from many programs: columns are separated by commas, semicolons or tabs, the text is UTF-8, UTF-16 or
Windows-1252, numbers may have a decimal comma, names of columns and files any case; words for labels, views and sides
are those below and in rayad/imaging/views.py. Other columns are named and not used.
"""

import math
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeVar

from rayad import tables
from rayad.datasets.exam import Lesion, shortened
from rayad.errors import DatasetError
from rayad.imaging import views
from rayad.terminal import warn_once

LABELS = "labels.csv"
OF_IMAGE = ("patient", "label", "view", "laterality", "density", "spacing_mm", "split")
CIRCLE, BOX = ("row", "col", "radius"), ("left", "top", "right", "bottom")
OF_LESION = ("kind", "finding", "malignant", *CIRCLE, *BOX, "polygon", "mask")
COLUMNS = ("image", *OF_IMAGE, *OF_LESION)
ANOMALOUS = {
    "": None,
    **dict.fromkeys(("normal", "healthy", "negative", "good", "0", "false"), False),
    **dict.fromkeys(("anomalous", "abnormal", "diseased", "positive", "malignant", "cancer", "1", "true"), True),
}
MALIGNANT = {
    "": None,
    **dict.fromkeys(("no", "benign", "0", "false"), False),
    **dict.fromkeys(("yes", "malignant", "1", "true"), True),
}
PART = {
    "": "",
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    "calibration": "calibration",
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Words for the parts of a data set, in tables and as names of folders."""
ALIKE = 0.75
"""How alike the name of a column must be to a known one to be taken for a slip of the pen."""
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)
FARTHEST_PX = 100_000
"""Of a polygon's corners from the first pixel."""
UNNAMED = "lesion"
"""Kind of a lesion whose row names none."""

Row = dict[str, str]
"""A line of the table: every column, empty where there is nothing."""
Meaning = TypeVar("Meaning")


@dataclass(frozen=True)
class Facts:
    """What the rows of an image say; "" and None where they say nothing."""

    patient: str
    anomalous: bool | None
    view: str
    laterality: str
    density: str
    spacing_mm: float | None
    part: str
    lesions: tuple[Lesion, ...]


def read(url: str, files: Collection[str]) -> dict[str, list[Row]]:
    """The rows of each image; DatasetError if the table is no table or names files that are not there.

    Args:
        files: what the columns image and mask may name.
    """
    header, rows, separator = tables.cells(url)
    if "image" not in header:
        columns = f"columns {', '.join(header)}, separated by {separator!r}"
        raise DatasetError(f"{url}: {columns}; wanted image and any of {', '.join(COLUMNS[1:])}")
    unused_columns = [name for name in header if name not in COLUMNS]
    for name in unused_columns:
        if similar := get_close_matches(name, [column for column in COLUMNS if column not in header], 1, ALIKE):
            raise DatasetError(f"{url}: a column {name!r}; is {similar[0]} meant?")
    if unused_columns:
        warn_once(f"{url}: columns that are not used: {', '.join(unused_columns)}")
    stems = {file: posixpath.splitext(file.lower())[0] for file in files}
    frequency = Counter(stems.values())
    spellings = {stem: file for file, stem in stems.items() if frequency[stem] == 1}
    spellings |= {file.lower(): file for file in files}
    table: dict[str, list[Row]] = defaultdict(list)
    for number, values in enumerate(rows, start=1):
        row = dict.fromkeys(COLUMNS, "") | dict(zip(header, values, strict=False))
        if len(values) != len(header) or not row["image"]:
            raise DatasetError(
                f"{url}: row {number} needs an image and {len(header)} cells; {separator!r} separates them"
            )
        for column in ("image", "mask"):
            path = posixpath.normpath(row[column].replace("\\", "/")) if row[column] else ""
            row[column] = path if path in files else spellings.get(path.lower(), path)
        table[row["image"]].append({column: row[column] for column in COLUMNS})
    named_files = table.keys() | {row["mask"] for rows in table.values() for row in rows if row["mask"]}
    if missing := named_files - set(files):
        raise DatasetError(f"{url}: names images that are not there: {shortened(missing)}")
    return table


def facts(path: str, rows: Sequence[Row], files: Mapping[str, str]) -> Facts:
    """What the rows of an image say.

    Args:
        path: of the image, for messages.
        files: path of a mask -> its URL.

    Raises:
        DatasetError: a cell that cannot be understood, rows that contradict each other, or a normal image with a
            lesion.
    """
    columns = {column: _agreed(path, column, rows) for column in OF_IMAGE}
    anomalous = _meaning(path, "label", columns["label"], ANOMALOUS)
    lesions = tuple(_lesion(files, path, row) for row in rows if any(row[c] for c in OF_LESION))
    if lesions and anomalous is False:
        raise DatasetError(f"{LABELS}: {path} is normal and has a lesion")
    view, side = _views(path, columns["view"], columns["laterality"])
    spacing = columns["spacing_mm"]
    return Facts(
        patient=columns["patient"],
        anomalous=True if lesions else anomalous,
        view=view,
        laterality=side,
        density=columns["density"],
        spacing_mm=_positive(path, "spacing_mm", spacing, zero=True) if spacing else None,
        part=_meaning(path, "split", columns["split"], PART),
        lesions=lesions,
    )


def _views(path: str, view: str, laterality: str) -> tuple[str, str]:
    """View and side of an image; DatasetError where a word is none, or both columns name sides that differ."""
    try:
        (view_name, side), other_side = views.view(view), views.side(laterality)
    except ValueError as error:
        raise DatasetError(f"{LABELS}: {path}: {error}") from None
    if side and other_side and side != other_side:
        raise DatasetError(f"{LABELS}: {path}: view {view!r} is of the other side than laterality {laterality!r}")
    return view_name, side or other_side


def _agreed(path: str, column: str, rows: Sequence[Row]) -> str:
    """What the image's rows say in a column of the image, where they say something."""
    statements = sorted({row[column] for row in rows} - {""})
    if len(statements) > 1:
        several = f"{len(statements)} of them" if column == "patient" else " and ".join(statements)
        raise DatasetError(f"{LABELS}: {path} has one {column}, not {several}")
    return statements[0] if statements else ""


def _lesion(files: Mapping[str, str], path: str, row: Row) -> Lesion:
    circle = None
    if any(row[column] for column in CIRCLE):
        centre = _number(path, "row", row["row"]), _number(path, "col", row["col"])
        circle = (*centre, _positive(path, "radius", row["radius"]))
    if row["polygon"]:
        outline = _polygon(path, row["polygon"])
    else:
        outline = _box(path, row) if any(row[column] for column in BOX) else ()
    return Lesion(
        kind=row["kind"].lower() or UNNAMED,
        finding=row["finding"],
        malignant=_meaning(path, "malignant", row["malignant"], MALIGNANT),
        circle=circle,
        outline=outline,
        mask_url=files[row["mask"]] if row["mask"] else "",
    )


def _box(path: str, row: Row) -> tuple[tuple[float, float], ...]:
    """The corners of a box; DatasetError where its sides are not in their order."""
    left, top, right, bottom = (_number(path, side, row[side]) for side in BOX)
    if left > right or top > bottom:
        raise DatasetError(f"{LABELS}: {path}: a box from left {left:g} to right {right:g}, top {top:g} to {bottom:g}")
    return (top, left), (top, right), (bottom, right), (bottom, left)


def _polygon(path: str, cell: str) -> tuple[tuple[float, float], ...]:
    """The corners that a cell has, column and row of each, whatever stands between the numbers."""
    numbers = [float(number) for number in NUMBER.findall(cell)]
    rest = NUMBER.sub("", cell).translate(str.maketrans("", "", " ,;()[]\t\n"))
    if rest or len(numbers) < 6 or len(numbers) % 2 or max(map(abs, numbers)) > FARTHEST_PX:
        raise DatasetError(f"{LABELS}: {path}: a polygon is column and row of three corners or more, not {cell[:60]!r}")
    return tuple(zip(numbers[1::2], numbers[::2], strict=True))


def _meaning(path: str, column: str, cell: str, meanings: dict[str, Meaning]) -> Meaning:
    if cell.lower() not in meanings:
        first_words = {meaning: word for word, meaning in reversed(meanings.items()) if word}
        choices = ", ".join(word for word in meanings if word in first_words.values())
        raise DatasetError(f"{LABELS}: {path}: {column} {cell!r} is not {choices} or empty")
    return meanings[cell.lower()]


def _number(path: str, column: str, cell: str) -> float:
    number = tables.number(cell)
    if math.isnan(number):
        raise DatasetError(f"{LABELS}: {path}: {column} {cell!r} is not a number")
    return number


def _positive(path: str, column: str, cell: str, *, zero: bool = False) -> float:
    number = _number(path, column, cell)
    if number < 0 or (number == 0 and not zero):
        raise DatasetError(f"{LABELS}: {path}: {column} {cell} is not above 0")
    return number
