"""labels.csv: a table of what is in a folder's images, a row an image or a row a lesion.

It has at least the column ``image``, the file's path below the folder. The other columns may be missing or empty:
``patient``, ``label`` (normal or anomalous), ``view``, ``laterality`` (L or R), ``density``, ``spacing_mm``, and of a
lesion ``kind``, ``finding``, ``malignant`` (yes or no), ``row``, ``col`` and ``radius`` of a circle in px, ``mask``
(path of an image whose pixels above 0 are the lesion). No message quotes the column ``patient``.
"""

import csv
import io
import math
import posixpath
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rayad import storage
from rayad.datasets.exam import Lesion, shortened
from rayad.errors import DatasetError

LABELS = "labels.csv"
OF_IMAGE = ("patient", "label", "view", "laterality", "density", "spacing_mm")
OF_LESION = ("kind", "finding", "malignant", "row", "col", "radius", "mask")
COLUMNS = ("image", *OF_IMAGE, *OF_LESION)
ANOMALOUS = {"": None, "normal": False, "anomalous": True}
MALIGNANT = {"": None, "no": False, "yes": True}
LATERALITY = {"": "", "l": "L", "r": "R"}
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
    lesions: tuple[Lesion, ...]


def read(url: str, files: Collection[str]) -> dict[str, list[Row]]:
    """The rows of each image; DatasetError if the table is no table or names files that are not there.

    Args:
        files: what the columns image and mask may name.
    """
    try:
        lines = csv.DictReader(io.StringIO(storage.read_bytes(url).decode("utf-8-sig"), newline=""), strict=True)
        header, rows = list(lines.fieldnames or []), list(lines)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{url}: not a table of comma-separated UTF-8 text: {error}") from None
    if "image" not in header or not set(header) <= set(COLUMNS):
        raise DatasetError(f"{url}: columns {', '.join(header)}; wanted image and any of {', '.join(COLUMNS[1:])}")
    if len(set(header)) < len(header):
        raise DatasetError(f"{url}: two columns have the same name: {', '.join(header)}")
    table: dict[str, list[Row]] = defaultdict(list)
    for number, cells in enumerate(rows, start=1):
        if None in cells or None in cells.values() or not cells["image"].strip():
            raise DatasetError(f"{url}: row {number} needs an image and {len(header)} cells")
        row = {column: cells.get(column, "").strip() for column in COLUMNS}
        row |= {column: posixpath.normpath(row[column]) for column in ("image", "mask") if row[column]}
        table[row["image"]].append(row)
    named = table.keys() | {row["mask"] for rows in table.values() for row in rows if row["mask"]}
    if missing := named - set(files):
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
    of = {column: _agreed(path, column, rows) for column in OF_IMAGE}
    anomalous = _meaning(path, "label", of["label"], ANOMALOUS)
    lesions = tuple(_lesion(files, path, row) for row in rows if any(row[c] for c in OF_LESION))
    if lesions and anomalous is False:
        raise DatasetError(f"{LABELS}: {path} is normal and has a lesion")
    spacing = of["spacing_mm"]
    return Facts(
        patient=of["patient"],
        anomalous=True if lesions else anomalous,
        view=of["view"].upper(),
        laterality=_meaning(path, "laterality", of["laterality"], LATERALITY),
        density=of["density"],
        spacing_mm=_positive(path, "spacing_mm", spacing, zero=True) if spacing else None,
        lesions=lesions,
    )


def _agreed(path: str, column: str, rows: Sequence[Row]) -> str:
    """What the image's rows say in a column of the image, where they say something."""
    said = sorted({row[column] for row in rows} - {""})
    if len(said) > 1:
        several = f"{len(said)} of them" if column == "patient" else " and ".join(said)
        raise DatasetError(f"{LABELS}: {path} has one {column}, not {several}")
    return said[0] if said else ""


def _lesion(files: Mapping[str, str], path: str, row: Row) -> Lesion:
    circle = None
    if row["row"] or row["col"] or row["radius"]:
        centre = _number(path, "row", row["row"]), _number(path, "col", row["col"])
        circle = (*centre, _positive(path, "radius", row["radius"]))
    return Lesion(
        kind=row["kind"].lower() or UNNAMED,
        finding=row["finding"],
        malignant=_meaning(path, "malignant", row["malignant"], MALIGNANT),
        circle=circle,
        mask_url=files[row["mask"]] if row["mask"] else "",
    )


def _meaning(path: str, column: str, cell: str, meanings: dict[str, Meaning]) -> Meaning:
    if cell.lower() not in meanings:
        wanted = ", ".join(filter(None, meanings))
        raise DatasetError(f"{LABELS}: {path}: {column} {cell!r} is not {wanted} or empty")
    return meanings[cell.lower()]


def _number(path: str, column: str, cell: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DatasetError(f"{LABELS}: {path}: {column} {cell!r} is not a number")
    return number


def _positive(path: str, column: str, cell: str, *, zero: bool = False) -> float:
    number = _number(path, column, cell)
    if number < 0 or (number == 0 and not zero):
        raise DatasetError(f"{LABELS}: {path}: {column} {cell} is not above 0")
    return number
