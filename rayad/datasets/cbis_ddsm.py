"""CBIS-DDSM: film mammograms of DDSM as DICOM, with masks of 3,568 abnormalities.

Sawyer-Lee et al., "Curated Breast Imaging Subset of DDSM", The Cancer Imaging Archive (2016), 10.7937/K9/TCIA.2016.
7O02S9CY; Lee et al., Scientific Data 4 (2017), 170177. Four tables, ``*_case_description_*_set.csv``, have a row an
abnormality; files are found by their series UID, wherever a download put them. Masses and calcifications come with
copies of one mammogram and share patients: an exam here is a mammogram, with what all tables say of it. It is of the
part "test" where a test table has it, of the part "train" otherwise. What a training table says of a mammogram of the
test part is of kind "other", so that a kind has those images there that its test table has.

Every image holds an abnormality, so one learns from other images (DDSM's normal cases). The files say no spacing: DDSM
was scanned at 42 to 50 micrometres.
"""

import csv
import io
import posixpath
import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from rayad import storage
from rayad.arrays import Mask, Pixels
from rayad.datasets.exam import Exam, Excluded, Lesion, in_order, plausible, shortened
from rayad.errors import DatasetError, ImageError
from rayad.imaging import dicom
from rayad.imaging.spacing import resample_mask
from rayad.options import Spacing

TABLES = "_case_description_"
"""Part of the names of the four tables."""
PART = re.compile(rf"{TABLES}(train|test)_set", re.IGNORECASE)
"""What their names say of the part of the set."""
NAME = re.compile(r"(Mass|Calc)-(Training|Test)_(?P<patient>P_\d+)_(?P<side>LEFT|RIGHT)_(?P<view>CC|MLO)(_\d+)?")
"""Of a folder in a table's paths, which is the PatientID of its files too."""
NUMBER = re.compile(r"(?:(?P<from_zero>0\d{5})|\d+-(?P<from_one>[12]))\.dcm")
"""Of a file of a series: 000000.dcm and 1-1.dcm are the first."""
SIDES = {"LEFT": "L", "RIGHT": "R"}
VIEWS = ("CC", "MLO")
MALIGNANT = {"MALIGNANT": True, "BENIGN": False, "BENIGN_WITHOUT_CALLBACK": False}
COLUMNS = ("patient_id", "left or right breast", "image view", "abnormality type", "pathology", "image file path")
PATHS = ("image file path", "cropped image file path", "ROI mask file path")
SMALLEST = 0.5
"""Of a mask's rows to its image's: a smaller file is a cut-out, whatever its shape."""

Row = dict[str, str]
"""An abnormality; cells without blanks at their ends, and the `part` whose table it is of."""
Mammogram = tuple[str, str, str]
"""Patient, side and view, as the tables write them."""


@dataclass(frozen=True)
class File:
    """A DICOM file."""

    url: str
    series: str
    """SeriesInstanceUID."""
    shape: tuple[int, int]
    """Rows and columns of its image."""
    mammogram: Mammogram | None = None
    """Whose its PatientID says it is; None: it says nothing of it."""

    @property
    def number(self) -> int | None:
        """Its place in its series, from 0, by its name; None: the name does not say it."""
        return _number(self.url)


@dataclass(frozen=True)
class Dataset:
    """CBIS-DDSM (film, CC and MLO, DICOM): a folder or URL with the tables and the images, or any part of them."""

    source: str = ""
    """Folder or URL of the DICOM files, in any folders below it."""
    tables: str = ""
    """Folder or URL of the four tables; empty: they are with the images."""
    spacing_mm: Spacing = 0.05
    """Pixel spacing; the files have none, 0.05 is that of the scanner of most cases."""

    def exams(self) -> list[Exam]:
        """An exam a mammogram; DatasetError if no table is there, one cannot be understood, or no image is there."""
        return self.listed()[0]

    def excluded(self) -> list[Excluded]:
        """Mammograms that are not there or contradicted, abnormalities without a mask, files that are no DICOM."""
        return self.listed()[1]

    def pixels(self, exam: Exam) -> Pixels:
        """The image at full depth."""
        return dicom.read(exam.url)

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        """The abnormality's mask, at the size of the image; DatasetError if it is not there or no mask of the image."""
        if not lesion.located:
            raise DatasetError(f"{exam.exam_id}: no mask of this {lesion.kind} below {self.source}")
        pixels = dicom.read(lesion.mask_url)
        mask = np.asarray(pixels == pixels.max())
        if mask.all() or (pixels[~mask] != pixels.min()).any():
            raise DatasetError(f"{lesion.mask_url}: a mask of two values expected, this is another image")
        header = dicom.header(exam.url)
        shape = header.rows, header.columns
        if not scaled(mask.shape, shape):
            raise DatasetError(f"{lesion.mask_url}: mask of {mask.shape} px for {exam.url} of {shape} px")
        return plausible(resample_mask(mask, shape), lesion.mask_url)

    def listed(self) -> tuple[list[Exam], list[Excluded]]:
        """Both, with every header read once."""
        rows = read_tables(self.tables or self.source)
        series, excluded = _series_of_files(self.source)
        contradicted: set[Mammogram] = set()
        mammograms: dict[Mammogram, list[Row]] = defaultdict(list)
        for row in rows:
            mammograms[mammogram_of(row)].append(row)
            if others := _others(row):
                names = shortened("_".join(other) for other in others)
                why = f"the table says {'_'.join(mammogram_of(row))}, the path {names}"
                excluded.append(Excluded(row["image file path"], why))
                contradicted |= {mammogram_of(row), *others}
        exams = []
        for mammogram, own_rows in mammograms.items():
            images = [file for row in own_rows for file in _files(row, PATHS[:1], series, excluded)]
            if mammogram in contradicted:
                excluded.append(
                    Excluded(own_rows[0]["image file path"], "a row of the tables may be of this mammogram")
                )
            elif images:
                exams.append(self._exam(own_rows, images[0], series, excluded))
            else:
                excluded.append(Excluded(own_rows[0]["image file path"], "the image is not there"))
        if not exams:
            raise DatasetError(f"{self.source}: no image of the {len(mammograms):,} mammograms in the tables")
        return in_order(exams), excluded

    def _exam(self, rows: Sequence[Row], image: File, series: dict[str, list[File]], excluded: list[Excluded]) -> Exam:
        patient, side, view = mammogram_of(rows[0])
        part = part_of(rows)
        return Exam(
            exam_id=f"{patient}-{side}-{view}",
            patient_id=patient,
            url=image.url,
            anomalous=True,
            view=view,
            laterality=SIDES[side],
            density=rows[0].get("breast density", ""),
            spacing_mm=self.spacing_mm,
            lesions=tuple(_lesion(row, kind_of(row, part), image, series, excluded) for row in rows),
            part=part,
        )


def read_tables(source: str) -> list[Row]:
    """The rows of all tables below a folder; DatasetError if there is none or one cannot be understood."""
    urls = [url for url in storage.listing(source, (".csv",)) if TABLES in posixpath.basename(url)]
    if not urls:
        raise DatasetError(f"{source}: the tables of CBIS-DDSM expected, called *{TABLES}*.csv")
    rows = [row for url in urls for row in _parse(storage.read_bytes(url), url)]
    if not rows:
        raise DatasetError(f"{shortened(urls)}: no row")
    return rows


def mammogram_of(row: Row) -> Mammogram:
    """Of which mammogram a row says that it is."""
    return row["patient_id"], row["left or right breast"], row["image view"]


def part_of(rows: Sequence[Row]) -> str:
    """The part of a mammogram with these rows: test where a test table has it, else train."""
    return "test" if any(row["part"] == "test" for row in rows) else "train"


def kind_of(row: Row, part: str) -> str:
    """Mass or calcification; other where a training table alone has it and the mammogram is of the test part."""
    return row["abnormality type"] if row["part"] == part else "other"


def scaled(shape: tuple[int, ...], image: tuple[int, int]) -> bool:
    """Whether a mask of this shape is of the image, at its size or another: both sides in one ratio, within 1 px."""
    least = max((side - 1) / full for side, full in zip(shape, image, strict=True))
    most = min((side + 1) / full for side, full in zip(shape, image, strict=True))
    return least <= most and shape[0] >= SMALLEST * image[0]


def _parse(data: bytes, url: str) -> list[Row]:
    """Rows of a table; paths in it may end in a newline, and one column is called by two names."""
    part = PART.search(posixpath.basename(url))
    if not part:
        raise DatasetError(
            f"{url}: a table of CBIS-DDSM expected, called *{TABLES}train_set.csv or *{TABLES}test_set.csv"
        )
    try:
        lines = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        header = [str(name).strip().replace("breast_density", "breast density") for name in lines.fieldnames or ()]
        if missing := {*COLUMNS, *PATHS} - set(header):
            raise DatasetError(f"{url}: no column {', '.join(sorted(missing))}")
        if len(set(header)) < len(header):
            raise DatasetError(f"{url}: two columns have the same name: {', '.join(header)}")
        rows = []
        for number, cells in enumerate(lines, start=1):
            values = list(cells.values())
            if None in cells or None in values:
                raise DatasetError(f"{url}: row {number} has not the {len(header)} cells of the header")
            row = dict(zip(header, (str(value).strip() for value in values), strict=True))
            rows.append(_understood(row, number, url) | {"part": part[1].lower()})
        return rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{url}: not a table of comma-separated UTF-8 text: {error}") from None


def _understood(row: Row, number: int, url: str) -> Row:
    for column, meanings in (
        ("left or right breast", SIDES),
        ("image view", VIEWS),
        ("pathology", MALIGNANT),
        ("abnormality type", ("mass", "calcification")),
    ):
        if row[column] not in meanings:
            raise DatasetError(f"{url}: row {number}: {column} {row[column]!r} is not {', '.join(meanings)}")
    for column in PATHS:
        if row[column].count("/") != 3:
            raise DatasetError(f"{url}: row {number}: {column} {row[column]!r} is not folder/study/series/file")
    return row


def _uid(path: str) -> str:
    """SeriesInstanceUID in a path of the tables."""
    return path.split("/")[2]


def _others(row: Row) -> set[Mammogram]:
    """Mammograms that the folders of a row's paths name, other than its own."""
    named = {_mammogram(row[column].split("/")[0]) for column in PATHS}
    return {mammogram for mammogram in named if mammogram and mammogram != mammogram_of(row)}


def _mammogram(name: str) -> Mammogram | None:
    match = NAME.fullmatch(name)
    return (match["patient"], match["side"], match["view"]) if match else None


def _number(path: str) -> int | None:
    match = NUMBER.fullmatch(posixpath.basename(path))
    return None if not match else int(match["from_zero"]) if match["from_zero"] else int(match["from_one"]) - 1


def _series_of_files(source: str) -> tuple[dict[str, list[File]], list[Excluded]]:
    """Series UID -> its files; and the files that could not be read."""
    series: dict[str, list[File]] = defaultdict(list)
    excluded = []
    urls = storage.listing(source, (".dcm",))
    with ThreadPoolExecutor(16) as pool:
        for url, header in zip(urls, pool.map(_header, urls), strict=True):
            if isinstance(header, Excluded):
                excluded.append(header)
            else:
                shape = header.rows, header.columns
                series[header.series].append(File(url, header.series, shape, _mammogram(header.patient_id)))
    return series, excluded


def _header(url: str) -> dicom.Header | Excluded:
    try:
        return dicom.header(url)
    except ImageError as error:
        return Excluded(url, str(error))


def _files(row: Row, columns: Sequence[str], series: dict[str, list[File]], excluded: list[Excluded]) -> list[File]:
    """The files of the series that a row names in these columns; those that say to be of another mammogram are not."""
    files = dict.fromkeys(file for column in columns for file in series.get(_uid(row[column]), []))
    strange = [file for file in files if file.mammogram not in (None, mammogram_of(row))]
    excluded += [
        Excluded(file.url, "its PatientID is that of another mammogram than the tables say") for file in strange
    ]
    return [file for file in files if file not in strange]


def _lesion(row: Row, kind: str, image: File, series: dict[str, list[File]], excluded: list[Excluded]) -> Lesion:
    mask = _mask(_files(row, PATHS[1:], series, excluded), image, row)
    if isinstance(mask, str):
        excluded.append(Excluded(row["ROI mask file path"], mask))
    elif _is(mask, row["cropped image file path"]) and not _is(mask, row["ROI mask file path"]):
        excluded.append(Excluded(mask.url, "the table calls this mask the cut-out; it is taken for what it is"))
    columns = (
        ("mass shape", "mass margins") if row["abnormality type"] == "mass" else ("calc type", "calc distribution")
    )
    return Lesion(
        kind=kind,
        finding=" ".join(filter(None, (row.get(column, "") for column in columns))),
        malignant=MALIGNANT[row["pathology"]],
        mask_url="" if isinstance(mask, str) else mask.url,
    )


def _mask(files: Sequence[File], image: File, row: Row) -> File | str:
    """Which of an abnormality's files is its mask, or why none is.

    Mask and cut-out stand in either order, in one series or two. The mask has the image's size, or its shape at another
    size; of two such files it is the one that the table calls so.
    """
    if not files:
        return "its mask is not there"
    masks = [file for file in files if file.shape == image.shape]
    masks = masks or [file for file in files if scaled(file.shape, image.shape)]
    if not masks:
        largest = max(file.shape for file in files)
        return f"no mask of the image's shape: {image.shape} px wanted, the largest file has {largest}"
    named = [file for file in masks if _is(file, row["ROI mask file path"])]
    if len(masks) > 1 and len(named) != 1:
        return f"one mask expected, {len(masks)} files have the image's shape"
    return named[0] if len(masks) > 1 else masks[0]


def _is(file: File, path: str) -> bool:
    """Whether a path of the tables is of this file, as far as its name tells."""
    return file.series == _uid(path) and file.number is not None and file.number == _number(path)
