"""CBIS-DDSM: film mammograms of DDSM as DICOM, with masks of 3,568 abnormalities.

Sawyer-Lee et al., "Curated Breast Imaging Subset of DDSM", The Cancer Imaging Archive (2016), 10.7937/K9/TCIA.2016.
7O02S9CY; Lee et al., Scientific Data 4 (2017), 170177. Four tables, ``*_case_description_*_set.csv``, have a row an
abnormality; files are found by their series UID, wherever a download put them. Masses and calcifications come with
copies of one mammogram and share patients: an exam here is a mammogram, with what both tables say of it.

Every image holds an abnormality, so one learns from other images (DDSM's normal cases). The files say no spacing: DDSM
was scanned at 42 to 50 micrometres.
"""

import csv
import io
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rayad import storage
from rayad.arrays import Mask, Pixels
from rayad.datasets.exam import Exam, Excluded, Lesion, in_order, shortened
from rayad.errors import DatasetError, ImageError
from rayad.imaging import dicom
from rayad.options import Spacing

TABLES = "_case_description_"
"""Part of the names of the four tables."""
SIDES = {"LEFT": "L", "RIGHT": "R"}
VIEWS = ("CC", "MLO")
MALIGNANT = {"MALIGNANT": True, "BENIGN": False, "BENIGN_WITHOUT_CALLBACK": False}
COLUMNS = ("patient_id", "left or right breast", "image view", "abnormality type", "pathology", "image file path")
PATHS = ("image file path", "cropped image file path", "ROI mask file path")
PATCH_PX = 64

Row = dict[str, str]
"""An abnormality; column names with underscores, cells without blanks at their ends."""


@dataclass(frozen=True)
class File:
    """A DICOM file, and the rows and columns of its image."""

    url: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class Dataset:
    """CBIS-DDSM (film, CC and MLO, DICOM): a folder or URL with the tables and the images, or any part of them."""

    source: str = ""
    """Folder or URL of the DICOM files, in any folders below it."""
    tables: str = ""
    """Folder or URL of the four tables; empty: they are with the images."""
    spacing_mm: Spacing = 0.05
    """Pixel spacing; the files have none, 0.05 is that of the scanner of most cases."""
    lesions: Literal["all", "paper"] = "all"
    """paper: those that Dietrichstein et al. 2022 test on (`selection`); the others are listed as left out."""

    def exams(self) -> list[Exam]:
        """An exam a mammogram; DatasetError if no table is there, one cannot be understood, or no image is there."""
        return self.listed()[0]

    def excluded(self) -> list[Excluded]:
        """Mammograms of the tables whose image is not there, and files that are no DICOM."""
        return self.listed()[1]

    def pixels(self, exam: Exam) -> Pixels:
        """The image at full depth."""
        return dicom.read(exam.url)

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        """The abnormality's mask; DatasetError if it is not there, or not two values of the image's size."""
        if not lesion.located:
            raise DatasetError(f"{exam.exam_id}: no mask of this {lesion.kind} below {self.source}")
        pixels = dicom.read(lesion.mask_url)
        mask = np.asarray(pixels == pixels.max())
        if mask.all() or (pixels[~mask] != pixels.min()).any():
            raise DatasetError(f"{lesion.mask_url}: a mask of two values expected, this is another image")
        return mask

    def listed(self) -> tuple[list[Exam], list[Excluded]]:
        """Both, with every header read once."""
        rows = read_tables(self.tables or self.source)
        series, excluded = _series_of_files(self.source)
        mammograms: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
        for row in rows:
            mammograms[row["patient_id"], row["left or right breast"], row["image view"]].append(row)
        exams = []
        for mammogram in mammograms.values():
            images = [file for row in mammogram for file in series.get(_uid(row["image file path"]), [])]
            if images:
                exams.append(self._exam(mammogram, images[0], series))
            else:
                excluded.append(Excluded(mammogram[0]["image file path"], "the image is not there"))
        if not exams:
            raise DatasetError(f"{self.source}: no image of the {len(mammograms):,} mammograms in the tables")
        if self.lesions == "paper":
            exams, left_out = selection(self, exams)
            excluded += left_out
        return in_order(exams), excluded

    def _exam(self, rows: Sequence[Row], image: File, series: dict[str, list[File]]) -> Exam:
        patient, side, view = (rows[0][column] for column in COLUMNS[:3])
        return Exam(
            exam_id=f"{patient}-{side}-{view}",
            patient_id=patient,
            url=image.url,
            anomalous=True,
            view=view,
            laterality=SIDES[side],
            density=rows[0].get("breast density", ""),
            spacing_mm=self.spacing_mm,
            lesions=tuple(_lesion(row, image, series) for row in rows),
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


def selection(dataset: Dataset, exams: Iterable[Exam], spacing_mm: float = 0.05) -> tuple[list[Exam], list[Excluded]]:
    """The lesions that Dietrichstein et al. 2022 (section 3) test on, and why the others are none of them.

    A mass counts where its area is below that of four patches of 64x64 px. A calcification counts where its mask
    does not touch the border of the image, so that it holds the whole of it.

    Args:
        spacing_mm: resolution at which a patch has 64 px.

    Returns:
        Exams with the lesions that remain, if any do; and a row a lesion that does not.
    """
    selected, left_out = [], []
    for exam in exams:
        reasons = [_unlike_the_paper(dataset, exam, lesion, spacing_mm) for lesion in exam.lesions]
        left_out += [Excluded(exam.url, reason) for reason in reasons if reason]
        lesions = tuple(lesion for lesion, reason in zip(exam.lesions, reasons, strict=True) if not reason)
        if lesions:
            selected.append(replace(exam, lesions=lesions))
    return selected, left_out


def _unlike_the_paper(dataset: Dataset, exam: Exam, lesion: Lesion, spacing_mm: float) -> str:
    if not lesion.located:
        return f"a {lesion.kind} without a mask"
    mask = dataset.lesion_mask(exam, lesion)
    if lesion.kind == "mass":
        area = mask.sum() * (exam.spacing_mm / spacing_mm) ** 2
        return "" if area < 4 * PATCH_PX**2 else "a mass of the area of four patches or more"
    touches_border = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
    return "a calcification that touches the border" if touches_border else ""


def _parse(data: bytes, url: str) -> list[Row]:
    """Rows of a table; paths in it may end in a newline, and one column is called by two names."""
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
            rows.append(_understood(dict(zip(header, (str(v).strip() for v in values), strict=True)), number, url))
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
                series[header.series].append(File(url, (header.rows, header.columns)))
    return series, excluded


def _header(url: str) -> dicom.Header | Excluded:
    try:
        return dicom.header(url)
    except ImageError as error:
        return Excluded(url, str(error))


def _lesion(row: Row, image: File, series: dict[str, list[File]]) -> Lesion:
    """A series may hold the mask and a cut-out of the image, in either order: the mask has the image's size."""
    files = [file for path in PATHS[1:] for file in series.get(_uid(row[path]), [])]
    masks = [file.url for file in files if file.shape == image.shape]
    kind = row["abnormality type"]
    columns = ("mass shape", "mass margins") if kind == "mass" else ("calc type", "calc distribution")
    return Lesion(
        kind=kind,
        finding=" ".join(filter(None, (row.get(column, "") for column in columns))),
        malignant=MALIGNANT[row["pathology"]],
        mask_url=masks[0] if masks else "",
    )
