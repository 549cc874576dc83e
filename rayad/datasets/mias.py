"""mini-MIAS: 322 digitized film mammograms of 161 patients, or any whole part of them.

Suckling et al., "The Mammographic Image Analysis Society Digital Mammogram Database", Excerpta Medica,
International Congress Series 1069 (1994), 375-378. ``Info.txt`` beside the images holds the labels, a line
a lesion. All views are MLO. An odd number is the right, the next even one the left breast of one patient.

mdb212 and mdb214 have a circle that lies on dark film, whichever way up it is read: kept as it is.
"""

import posixpath
import re
from collections import defaultdict
from dataclasses import dataclass

from rayad import storage
from rayad.arrays import Mask, Pixels
from rayad.datasets.exam import Exam, Lesion, in_order, read_grey, read_mask, shortened
from rayad.errors import DatasetError

KINDS = {
    "CIRC": "mass",
    "SPIC": "mass",
    "MISC": "mass",
    "CALC": "calcification",
    "ARCH": "distortion",
    "ASYM": "asymmetry",
}
SIDE_PX = 1024
"""Every image of the set is a square of this side."""
SPACING_MM = 0.2
"""Info.txt: reduced from 50 to 200 micrometres a pixel."""
LINE = re.compile(
    r"(?P<name>mdb\d{3})\s+(?P<tissue>[FGD])\s+"
    r"(NORM|(?P<finding>CIRC|SPIC|MISC|CALC|ARCH|ASYM)\s+(?P<severity>[BM])"
    r"(\s+(\*NOTE 3\*|(?P<x>\d+)\s+(?P<y>\d+)\s+(?P<radius>\d+)))?)"
)
"""A line of Info.txt; NOTE 3, or nothing, stands for the circle if there is no one place."""

Row = tuple[str, Lesion | None]
"""Tissue class and lesion of a line; None: normal."""


@dataclass(frozen=True)
class Dataset:
    """mini-MIAS (film, MLO, 0.2 mm): a folder or URL with Info.txt and mdb*.pgm or mdb*.png."""

    source: str = ""
    """Folder or URL of Info.txt and the images, which may be in folders below it."""

    def exams(self) -> list[Exam]:
        """All exams; DatasetError unless every image has a line in Info.txt and every line an image."""
        files = storage.listing(self.source, (".pgm", ".png"))
        info = storage.join(self.source, "Info.txt")
        if not storage.exists(info):
            raise DatasetError(f"{self.source}: mini-MIAS keeps its labels in Info.txt, which is not there")
        rows = _parse(storage.read_bytes(info).decode("latin-1"), info)
        if not rows:
            raise DatasetError(f"{info}: lists no image of mini-MIAS")
        stems = {_stem(url) for url in files}
        if missing := rows.keys() - stems:
            raise DatasetError(f"{self.source}: no image for {shortened(missing)}, which Info.txt lists")
        if unknown := stems - rows.keys():
            raise DatasetError(f"{info}: no line for {shortened(unknown)}, whose image is there")
        return in_order(_exam(url, rows[_stem(url)]) for url in files)

    def pixels(self, exam: Exam) -> Pixels:
        """The image as it came; DatasetError if it was resized, because its circles would be elsewhere."""
        pixels = read_grey(exam.url)
        if pixels.shape != (SIDE_PX, SIDE_PX):
            raise DatasetError(f"{exam.url}: mini-MIAS is {SIDE_PX} x {SIDE_PX} px, not {pixels.shape}")
        return pixels

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        """The circle that encloses the lesion (for calcifications: the cluster)."""
        return read_mask(exam, lesion, (SIDE_PX, SIDE_PX))


def _stem(url: str) -> str:
    return posixpath.splitext(posixpath.basename(url))[0]


def _exam(url: str, rows: list[Row]) -> Exam:
    name = _stem(url)
    number = int(name.removeprefix("mdb"))
    right_number = number if number % 2 else number - 1
    lesions = tuple(lesion for _, lesion in rows if lesion is not None)
    return Exam(
        exam_id=name,
        patient_id=f"mdb{right_number:03d}-{right_number + 1:03d}",
        url=url,
        anomalous=bool(lesions),
        view="MLO",
        laterality="R" if number % 2 else "L",
        density=rows[0][0],
        spacing_mm=SPACING_MM,
        lesions=lesions,
    )


def _parse(text: str, info: str) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = defaultdict(list)
    for line in text.splitlines():
        if line.startswith("mdb"):
            match = LINE.fullmatch(line.strip())
            if not match:
                raise DatasetError(f"{info}: not a line of mini-MIAS: {line.strip()!r}")
            rows[match["name"]].append((match["tissue"], _lesion(match)))
    return rows


def _lesion(line: re.Match[str]) -> Lesion | None:
    if line["finding"] is None:
        return None
    circle = None
    if line["x"] is not None:
        row = SIDE_PX - 1 - float(line["y"])  # the origin is the bottom left corner (Info.txt, note 3)
        circle = (row, float(line["x"]), float(line["radius"]))
    return Lesion(KINDS[line["finding"]], line["finding"], malignant=line["severity"] == "M", circle=circle)
