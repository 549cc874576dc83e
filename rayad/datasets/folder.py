"""Any folder of grey or colour images, with or without a table of what is in them.

``labels.csv`` in the folder has a row an image, or a row a lesion, and at least the column ``image``, the
file's path below the folder. The other columns may be missing or empty: ``patient``, ``label`` (normal or
anomalous), ``view``, ``laterality`` (L or R), ``density``, ``spacing_mm``, and of a lesion ``kind``,
``finding``, ``malignant`` (yes or no), ``row``, ``col`` and ``radius`` of a circle in px, ``mask`` (path of
an image whose pixels above 0 are the lesion). Without its own patient an image is a patient of its own.

``export`` writes the exams of any data set as such a folder.
"""

import csv
import io
import math
import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image as Pillow

from rayad import storage
from rayad.arrays import Image, Mask
from rayad.datasets.exam import Exam, Images, Lesion, in_order, read_colour, read_grey, read_mask, shortened
from rayad.errors import DatasetError

LABELS = "labels.csv"
SUFFIXES = (".png", ".pgm", ".tif", ".tiff", ".jpg", ".jpeg")
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
class Dataset:
    """Any folder or URL of PNG, PGM, TIFF or JPEG images; labels.csv in it is optional."""

    source: str = ""
    """The folder; images in folders below it count too."""
    spacing_mm: float = 0.0
    """Pixel spacing of images for which labels.csv has none; 0: not known, so labels.csv must have it."""
    healthy: bool = False
    """Images without a label are healthy; otherwise nobody knows, and they neither train nor test."""
    colour: bool = False
    """Images have colours; where nothing says their spacing, a pixel counts as a mm."""

    def exams(self) -> list[Exam]:
        """An exam an image, called as its path without the ending.

        Raises:
            DatasetError: there is no image, labels.csv names a file that is not there or cannot be
                understood, two images differ in their ending only, or a spacing is missing.
        """
        folder, labels = storage.join(self.source, ""), storage.join(self.source, LABELS)
        files = {url.removeprefix(folder): url for url in storage.listing(self.source, SUFFIXES)}
        table = _read(labels, files) if storage.exists(labels) else {}
        masks = {row["mask"] for rows in table.values() for row in rows} - table.keys()
        images = files.keys() - masks
        if not images:
            raise DatasetError(f"{self.source}: no image in this folder, wanted {', '.join(SUFFIXES)}")
        exams = in_order(self._exam(files, path, table.get(path, [])) for path in images)
        if bare := [exam.url for exam in exams if exam.spacing_mm == 0]:
            raise DatasetError(f"{shortened(bare)}: no spacing_mm, in the options or in {LABELS}")
        return exams

    def pixels(self, exam: Exam) -> Image:
        """The image in the file; ImageError if it has colours and none are wanted, or none and they are."""
        return read_colour(exam.url) if self.colour else read_grey(exam.url)

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        """The lesion's mask or else its circle; DatasetError if a mask has not the shape of the image."""
        height, width = self.pixels(exam).shape[:2]
        return read_mask(exam, lesion, (height, width))

    @property
    def _spacing_mm(self) -> float:
        return self.spacing_mm or float(self.colour)

    def _exam(self, files: dict[str, str], path: str, rows: list[Row]) -> Exam:
        name = posixpath.splitext(path)[0]
        facts = {column: _agreed(path, column, rows) for column in OF_IMAGE}
        anomalous = _meaning(path, "label", facts["label"], ANOMALOUS)
        lesions = tuple(_lesion(files, path, row) for row in rows if any(row[c] for c in OF_LESION))
        if lesions and anomalous is False:
            raise DatasetError(f"{LABELS}: {path} is normal and has a lesion")
        if not lesions and anomalous is None and self.healthy:
            anomalous = False
        return Exam(
            exam_id=name,
            patient_id=facts["patient"] or name,
            url=files[path],
            anomalous=True if lesions else anomalous,
            view=facts["view"].upper(),
            laterality=_meaning(path, "laterality", facts["laterality"], LATERALITY),
            density=facts["density"],
            spacing_mm=_positive(path, "spacing_mm", facts["spacing_mm"] or str(self._spacing_mm), zero=True),
            lesions=lesions,
        )


def export(dataset: Images, exams: Iterable[Exam], url: str) -> None:
    """Write exams as a folder that this module reads: 16-bit PNG, a mask a located lesion, labels.csv.

    Pixels are rounded to 1/65535. The table is written last, so a folder without it is not whole.
    """
    rows: list[Row] = []
    for exam in exams:
        path = f"{exam.exam_id}.png"
        pixels = np.rint(dataset.pixels(exam) * 65535).astype(np.uint16)
        _write_png(storage.join(url, path), pixels)
        facts = {"image": path, **_facts(exam)}
        lesions = []
        for number, lesion in enumerate(exam.lesions, start=1):
            mask = f"masks/{exam.exam_id}-{number}.png" if lesion.located else ""
            if mask:
                shown = dataset.lesion_mask(exam, lesion).astype(np.uint8) * 255
                _write_png(storage.join(url, mask), shown)
            lesions.append(facts | _described(lesion) | {"mask": mask})
        rows += lesions or [facts]
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerows([COLUMNS, *([row.get(column, "") for column in COLUMNS] for row in rows)])
    storage.write_bytes(storage.join(url, LABELS), text.getvalue().encode())


def _read(url: str, files: Collection[str]) -> dict[str, list[Row]]:
    """The rows of each image; DatasetError if the table is no table or names files that are not there."""
    try:
        lines = csv.DictReader(io.StringIO(storage.read_bytes(url).decode("utf-8-sig"), newline=""), strict=True)
        header, rows = list(lines.fieldnames or []), list(lines)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{url}: not a table of comma-separated UTF-8 text: {error}") from None
    if "image" not in header or not set(header) <= set(COLUMNS):
        raise DatasetError(f"{url}: columns {', '.join(header)}; wanted image and any of {', '.join(COLUMNS[1:])}")
    table: dict[str, list[Row]] = defaultdict(list)
    for cells in rows:
        if None in cells or None in cells.values() or not cells["image"].strip():
            raise DatasetError(f"{url}: a row needs an image and {len(header)} cells: {list(cells.values())}")
        row = {column: cells.get(column, "").strip() for column in COLUMNS}
        row |= {column: posixpath.normpath(row[column]) for column in ("image", "mask") if row[column]}
        table[row["image"]].append(row)
    named = table.keys() | {row["mask"] for rows in table.values() for row in rows if row["mask"]}
    if missing := named - set(files):
        raise DatasetError(f"{url}: names images that are not there: {shortened(missing)}")
    return table


def _agreed(path: str, column: str, rows: list[Row]) -> str:
    """What the image's rows say in a column of the image, where they say something."""
    said = sorted({row[column] for row in rows} - {""})
    if len(said) > 1:
        raise DatasetError(f"{LABELS}: {path} has one {column}, not {' and '.join(said)}")
    return said[0] if said else ""


def _lesion(files: dict[str, str], path: str, row: Row) -> Lesion:
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


def _facts(exam: Exam) -> Row:
    return {
        "patient": exam.patient_id,
        "label": _word(exam.anomalous, ANOMALOUS),
        "view": exam.view,
        "laterality": exam.laterality,
        "density": exam.density,
        "spacing_mm": repr(exam.spacing_mm),
    }


def _described(lesion: Lesion) -> Row:
    circle = dict(zip(("row", "col", "radius"), map(repr, lesion.circle or ()), strict=False))
    malignant = _word(lesion.malignant, MALIGNANT)
    return {"kind": lesion.kind, "finding": lesion.finding, "malignant": malignant, **circle}


def _word(meaning: Meaning, meanings: dict[str, Meaning]) -> str:
    return next(word for word, known in meanings.items() if known is meaning)


def _write_png(url: str, pixels: np.ndarray) -> None:
    with storage.writing(url) as file:
        Pillow.fromarray(pixels).save(file, "PNG")
