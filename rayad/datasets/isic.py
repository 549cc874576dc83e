"""Dermoscopic images of the ISIC archive: benign skin is what one learns from.

Two layouts. Folders ``benign`` and ``malignant`` (in any case of letters) with the images in them, as the data set
UDA-1 is served, or below ``train`` and ``test``, as the 13,900 images are of Mukesh et al. 2024: then those below
``test`` are the test images. Or a table ``labels.csv`` with the columns ``isic_id``, ``dx`` and maybe ``lesion_id``,
and the images in ``images``, as HAM10000 is: of its diagnoses mel, bcc and akiec are malignant here, though akiec holds
precancerous lesions (Tschandl, Rosendahl and Kittler, "The HAM10000 dataset", Scientific Data 2018); nv, bkl, df and
vasc are benign. Images of one lesion are of one patient. There is no spacing: a pixel counts as a mm.
"""

import csv
import io
import posixpath
from dataclasses import dataclass, replace

from rayad import storage
from rayad.arrays import Image, Mask
from rayad.datasets.exam import Exam, Lesion, in_order, read_colour, read_mask, shortened
from rayad.datasets.labels import PART
from rayad.errors import DatasetError

SUFFIXES = (".jpg", ".jpeg", ".png")
FOLDERS = {"benign": False, "malignant": True}
DIAGNOSES = {"mel": True, "bcc": True, "akiec": True, "nv": False, "bkl": False, "df": False, "vasc": False}
"""Diagnosis -> malignant?"""
TWINS = {"ISIC_0000280": "ISIC_0000279", "ISIC_0000512": "ISIC_0000477"}
"""Image -> the one that it is a copy of, byte for byte, in UDA-1: they must not stand in two splits."""
COPIED = {*TWINS, *TWINS.values()}
"""Images that have a copy."""


@dataclass(frozen=True)
class Dataset:
    """A folder of dermoscopic images with their diagnoses."""

    source: str = ""
    """Folder or URL that holds the folders benign and malignant, as they are or below train and test; or labels.csv."""

    def exams(self) -> list[Exam]:
        """An exam an image; malignant ones hold a lesion without a place.

        Raises:
            DatasetError: neither layout is there, a diagnosis is unknown, or an image that is named is missing.
        """
        labels = storage.join(self.source, "labels.csv")
        return in_order(self._of_table(labels) if storage.exists(labels) else self._of_folders())

    def pixels(self, exam: Exam) -> Image:
        """The image in colour."""
        return read_colour(exam.url)

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        """DatasetError: there are no places."""
        height, width = self.pixels(exam).shape[:2]
        return read_mask(exam, lesion, (height, width))

    def _of_folders(self) -> list[Exam]:
        exams, folder = [], storage.join(self.source, "")
        for url in storage.listing(self.source, SUFFIXES):
            path = url.removeprefix(folder)
            folders = path.lower().split("/")[:-1]
            diagnosis = next((name for name in folders if name in FOLDERS), "")
            part = next((PART[name] for name in folders if PART.get(name)), "")
            if diagnosis:
                name = posixpath.splitext(path)[0] if part else _name(url)
                patient = _name(url) if _name(url) in COPIED else name
                exams.append(replace(_exam(url, patient, "", FOLDERS[diagnosis]), exam_id=name, part=part))
        for name, malignant in FOLDERS.items():
            if malignant not in {exam.anomalous for exam in exams}:
                layouts = "labels.csv, or images in benign and malignant"
                raise DatasetError(f"{self.source}: wanted {layouts}; {name} has none")
        return exams

    def _of_table(self, labels: str) -> list[Exam]:
        rows = csv.DictReader(io.StringIO(storage.read_bytes(labels).decode("utf-8-sig"), newline=""))
        if missing := {"isic_id", "dx"} - set(rows.fieldnames or ()):
            raise DatasetError(f"{labels}: no column {', '.join(sorted(missing))}")
        files = {_name(file): file for file in storage.listing(storage.join(self.source, "images"), SUFFIXES)}
        exams, missing_names = [], []
        for row in rows:
            name, dx = row["isic_id"], row["dx"]
            if dx not in DIAGNOSES:
                raise DatasetError(f"{labels}: {name}: no diagnosis {dx!r}, rayad knows {', '.join(DIAGNOSES)}")
            if name not in files:
                missing_names.append(name)
                continue
            exams.append(_exam(files[name], row.get("lesion_id") or name, dx, DIAGNOSES[dx]))
        if missing_names:
            raise DatasetError(f"{labels}: names images that are not there: {shortened(missing_names)}")
        return exams


def _name(url: str) -> str:
    return posixpath.splitext(posixpath.basename(url))[0]


def _exam(url: str, patient: str, dx: str, malignant: bool) -> Exam:
    return Exam(
        exam_id=_name(url),
        patient_id=TWINS.get(patient, patient),
        url=url,
        anomalous=malignant,
        view="",
        laterality="",
        density="",
        spacing_mm=1.0,
        lesions=(Lesion("malignant", dx, True),) if malignant else (),
    )
