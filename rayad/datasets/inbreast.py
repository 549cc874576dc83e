"""INbreast: 410 digital mammograms of 115 cases with outlined findings (Moreira et al. 2012, Acad Radiol 19:236).

It comes as ``INbreast.csv`` (cells between semicolons; of them ``File Name``, ``ACR`` and ``Bi-Rads`` are used),
DICOM files ``22678622_61b13c59bcba149d_MG_R_CC_ANON.dcm`` (number, hash of the patient, side, view) and, for images
with findings, property lists of OsiriX named ``22678622.xml``: of each region its ``Name`` and ``Point_px``,
"(column, row)" counted from 0.

An image with regions is anomalous, one without them and with Bi-Rads 1 healthy; of the others nobody knows.
"""

import csv
import io
import plistlib
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np

from rayad import storage
from rayad.arrays import Mask, Pixels
from rayad.datasets.exam import Exam, Excluded, Lesion, in_order, outline_mask, shortened
from rayad.errors import DatasetError, ImageError
from rayad.imaging import dicom

TABLE = "INbreast.csv"
COLUMNS = ("File Name", "ACR", "Bi-Rads")
NAME = re.compile(r"(?P<number>\d+)_(?P<patient>[0-9a-fA-F]+)_MG_(?P<side>[LR])_(?P<view>CC|ML|MLO|FB)_ANON\.dcm")
KINDS = (
    ("mass", "mass"),
    ("spiculated", "mass"),
    ("espiculated", "mass"),
    ("calcification", "calcification"),
    ("cluster", "calcification"),
    ("distortion", "distortion"),
    ("asymmetry", "asymmetry"),
    ("assymetry", "asymmetry"),
)
"""Beginning of a region's name, as its authors wrote it -> kind of the lesion."""
VIEWS = {"CC": "CC", "MLO": "MLO", "ML": "MLO", "FB": "CC"}
"""ML is how the files call most of the oblique views; the only two of the others are the FB of one patient."""
HEALTHY = "1"
"""Bi-Rads of an image that shows nothing."""
POINT = re.compile(r"\(\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*\)")

Row = dict[str, str]
Region = tuple[str, np.ndarray]
"""Name, and points (n, 2) as row and column."""


@dataclass(frozen=True)
class Dataset:
    """INbreast: a folder or URL with INbreast.csv, the DICOM files and the property lists of OsiriX."""

    source: str = ""
    """Folder or URL of INbreast.csv; the other files may be in folders below it."""

    def exams(self) -> list[Exam]:
        """An exam a mammogram; DatasetError unless every file has a row of the table."""
        return self.listed()[0]

    def excluded(self) -> list[Excluded]:
        """Rows without an image, damaged files, and regions that have no known kind."""
        return self.listed()[1]

    def listed(self) -> tuple[list[Exam], list[Excluded]]:
        """Both, with every header read once."""
        rows = read_table(storage.join(self.source, TABLE))
        lists = {_stem(url): url for url in storage.listing(self.source, (".xml",))}
        exams: list[Exam] = []
        excluded: list[Excluded] = []
        seen_numbers: set[str] = set()
        for url in storage.listing(self.source, (".dcm",)):
            match = NAME.fullmatch(posixpath.basename(url))
            if not match or match["number"] not in rows:
                raise DatasetError(f"{url}: no row of {TABLE} is of this file, or its name is not one of INbreast's")
            seen_numbers.add(match["number"])
            try:
                header = dicom.header(url)
                lesions, unknown = _lesions(lists.get(match["number"], ""))
            except (ImageError, DatasetError) as error:
                excluded.append(Excluded(url, str(error)))
                continue
            excluded += [Excluded(url, f"region of no known kind: {name}") for name in unknown]
            row = rows[match["number"]]
            default_label = False if row["Bi-Rads"] == HEALTHY else None
            exams.append(
                Exam(
                    exam_id=match["number"],
                    patient_id=match["patient"],
                    url=url,
                    anomalous=True if lesions or unknown else default_label,
                    view=VIEWS[match["view"]],
                    laterality=match["side"],
                    density=row["ACR"],
                    spacing_mm=header.spacing_mm,
                    lesions=lesions,
                    scanner=header.scanner,
                )
            )
        excluded += [
            Excluded(f"{TABLE}: {number}", "a row without an image") for number in sorted(rows.keys() - seen_numbers)
        ]
        if not exams:
            raise DatasetError(
                f"{self.source}: no mammogram of INbreast"
                + f": {shortened({exclusion.reason for exclusion in excluded})}"
            )
        return in_order(exams), excluded

    def pixels(self, exam: Exam) -> Pixels:
        """The image at full depth."""
        return dicom.read(exam.url)

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        """The region's outline and what it encloses; one or two points are themselves."""
        header = dicom.header(exam.url)
        url, _, number = lesion.mask_url.partition("#")
        return outline_mask((header.rows, header.columns), read_regions(url)[int(number)][1])


def read_table(url: str) -> dict[str, Row]:
    """Number of an image -> its row; DatasetError if the table is not INbreast's."""
    try:
        text = storage.read_bytes(url).decode("utf-8-sig")
        lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=";", strict=True)
        header, rows = [name.strip() for name in lines.fieldnames or ()], list(lines)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{url}: not a table of UTF-8 text between semicolons: {error}") from None
    if missing := set(COLUMNS) - set(header):
        raise DatasetError(f"{url}: no column {', '.join(sorted(missing))}")
    table_rows: dict[str, Row] = {}
    for number, cells in enumerate(rows, start=1):
        if None in cells or None in cells.values():
            raise DatasetError(f"{url}: row {number} has not the {len(header)} cells of the header")
        row = {name.strip(): value.strip() for name, value in cells.items()}
        if row["File Name"]:  # the table ends in empty rows
            table_rows[row["File Name"]] = row
    return table_rows


def read_regions(url: str) -> list[Region]:
    """The regions of a property list; DatasetError if it is none, or a region has no points."""
    try:
        content = plistlib.loads(storage.read_bytes(url), fmt=plistlib.FMT_XML)
        return [(str(region["Name"]), _points(region["Point_px"])) for region in _rois(content)]
    except (plistlib.InvalidFileException, ExpatError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{url}: a property list with Images, ROIs, Name and Point_px expected: {type(error).__name__}"
        ) from None


def _rois(content: Any) -> Iterator[dict[str, Any]]:
    for image in content["Images"]:
        yield from image["ROIs"]


def _points(texts: list[str]) -> np.ndarray:
    """(n, 2) rows and columns, from "(column, row)"; ValueError if there is none."""
    matches = [POINT.fullmatch(text.strip()) for text in texts]
    if not matches or None in matches:
        raise ValueError("a point is (column, row)")
    return np.array([[float(match[2]), float(match[1])] for match in matches if match])


def _lesions(url: str) -> tuple[tuple[Lesion, ...], list[str]]:
    """The findings of an image, and names of regions that are of no known kind."""
    lesions, unknown = [], []
    for number, (name, _) in enumerate(read_regions(url) if url else []):
        kind = next((kind for beginning, kind in KINDS if name.strip().lower().startswith(beginning)), "")
        if kind:
            lesions.append(Lesion(kind, name.strip(), mask_url=f"{url}#{number}"))
        else:
            unknown.append(name)
    return tuple(lesions), unknown


def _stem(url: str) -> str:
    return posixpath.splitext(posixpath.basename(url))[0]
