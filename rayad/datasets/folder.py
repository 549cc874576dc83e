"""Any folder of grey or colour images, with or without a table of what is in them (labels.py, layout.py).

Without a patient in the table or a pattern that finds one in the path, an image is a patient of its own. ``export``
writes the exams of any data set as such a folder.
"""

import csv
import io
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image as Pillow

from rayad import storage
from rayad.arrays import Image, Mask
from rayad.datasets import labels, layout
from rayad.datasets.exam import (
    Exam,
    Excluded,
    Images,
    Lesion,
    in_order,
    read_colour,
    read_grey,
    read_mask,
    reasons,
    shortened,
)
from rayad.datasets.identity import warn_of_odd
from rayad.datasets.labels import ANOMALOUS, COLUMNS, LABELS, MALIGNANT, Row
from rayad.errors import DatasetError, OptionError
from rayad.imaging import raster
from rayad.imaging.files import kind_of
from rayad.options import SpacingOrNone

SUFFIXES = raster.SUFFIXES
OF_DICOM = "DICOM: the data set dicom reads it"
Meaning = TypeVar("Meaning")


@dataclass(frozen=True)
class Dataset:
    """Any folder or URL of PNG, PGM, TIFF or JPEG images; labels.csv in it is optional."""

    source: str = ""
    """The folder; images in folders below it count too."""
    spacing_mm: SpacingOrNone = 0.0
    """Pixel spacing of images for which labels.csv has none; 0: not known, so labels.csv must have it."""
    healthy: bool = False
    """Images without a label are healthy; otherwise nobody knows, and they neither train nor test."""
    colour: bool = False
    """Images have colours; where nothing says their spacing, a pixel counts as a mm."""
    patient_from: str = ""
    """Regular expression whose first group, or all of it, is the patient in an image's path below the folder, such as
    ([^/]+)_[LR]_ for 0012_L_MLO.png; the column patient goes before."""

    def exams(self) -> list[Exam]:
        """An exam an image, called as its path without the ending.

        Raises:
            DatasetError: there is no image, labels.csv names a file that is not there or cannot be
                understood, two images differ in their ending only, or a spacing is missing.
        """
        return self.listed()[0]

    def listed(self) -> tuple[list[Exam], list[Excluded]]:
        """The exams, and the files that are neither image nor label, by what they contain."""
        folder, table_url = storage.join(self.source, ""), storage.join(self.source, LABELS)
        kinds = {url: kind_of(url) for url in storage.listing(self.source) if url != table_url}
        files = {url.removeprefix(folder): url for url, kind in kinds.items() if kind == "raster"}
        excluded = [
            Excluded(url, OF_DICOM if kind == "dicom" else kind) for url, kind in kinds.items() if kind != "raster"
        ]
        if not files:
            reason = f": {reasons(excluded)[0]['reason']}" if excluded else ""
            raise DatasetError(f"{self.source}: no image in this folder, wanted {', '.join(SUFFIXES)}{reason}")
        if storage.exists(table_url):
            table, masks = labels.read(table_url, files), set[str]()
        else:
            table, masks = layout.read(files)
        used_masks = {row["mask"] for rows in table.values() for row in rows} - table.keys()
        excluded += [Excluded(files[path], "a mask of no anomalous image") for path in sorted(masks - used_masks)]
        masks |= used_masks
        exams = in_order(self._exam(files, path, table.get(path, [])) for path in files.keys() - masks)
        warn_of_odd([exam.patient_id for exam in exams])
        if without_spacing := [exam.url for exam in exams if exam.spacing_mm == 0]:
            raise DatasetError(f"{shortened(without_spacing)}: no spacing_mm, in --settings or in {LABELS}")
        return exams, excluded

    def pixels(self, exam: Exam) -> Image:
        """The image in the file; ImageError if it has colours and none are wanted, or none and they are."""
        return read_colour(exam.url) if self.colour else read_grey(exam.url)

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        """The lesion's mask or else its circle; DatasetError if a mask has not the shape of the image."""
        height, width = self.pixels(exam).shape[:2]
        return read_mask(exam, lesion, (height, width))

    def _patient(self, path: str) -> str:
        """What `patient_from` finds in a path; DatasetError if it finds nothing."""
        if not self.patient_from:
            return ""
        try:
            match = re.search(self.patient_from, path)
        except re.error as error:
            raise OptionError(f"patient_from={self.patient_from!r} is no regular expression: {error}") from None
        if not match or not (patient := match.group(min(1, match.re.groups)) or ""):
            raise DatasetError(f"{path}: patient_from={self.patient_from!r} finds no patient in it")
        return patient

    @property
    def _spacing_mm(self) -> float:
        return self.spacing_mm or float(self.colour)

    def _exam(self, files: dict[str, str], path: str, rows: list[Row]) -> Exam:
        name, facts = posixpath.splitext(path)[0], labels.facts(path, rows, files)
        default_label = False if self.healthy else None
        return Exam(
            exam_id=name,
            patient_id=facts.patient or self._patient(path) or name,
            url=files[path],
            anomalous=default_label if facts.anomalous is None else facts.anomalous,
            view=facts.view,
            laterality=facts.laterality,
            density=facts.density,
            spacing_mm=self._spacing_mm if facts.spacing_mm is None else facts.spacing_mm,
            lesions=facts.lesions,
            part=facts.part,
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
                mask_pixels = dataset.lesion_mask(exam, lesion).astype(np.uint8) * 255
                _write_png(storage.join(url, mask), mask_pixels)
            lesions.append(facts | _described(lesion) | {"mask": mask})
        rows += lesions or [facts]
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerows([COLUMNS, *([row.get(column, "") for column in COLUMNS] for row in rows)])
    storage.write_bytes(storage.join(url, LABELS), text.getvalue().encode())


def _facts(exam: Exam) -> Row:
    return {
        "patient": exam.patient_id,
        "label": _word(exam.anomalous, ANOMALOUS),
        "view": exam.view,
        "laterality": exam.laterality,
        "density": exam.density,
        "spacing_mm": repr(exam.spacing_mm),
        "split": exam.part,
    }


def _described(lesion: Lesion) -> Row:
    circle = dict(zip(("row", "col", "radius"), map(repr, lesion.circle or ()), strict=False))
    malignant = _word(lesion.malignant, MALIGNANT)
    return {"kind": lesion.kind, "finding": lesion.finding, "malignant": malignant, **circle}


def _word(meaning: Meaning, meanings: dict[str, Meaning]) -> str:
    return next(word for word, value in meanings.items() if value is meaning)


def _write_png(url: str, pixels: np.ndarray) -> None:
    with storage.writing(url) as file:
        Pillow.fromarray(pixels).save(file, "PNG")
