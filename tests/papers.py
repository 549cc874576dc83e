"""DDSM and CBIS-DDSM in their own layouts, made of phantoms, for the experiment of Dietrichstein et al. 2022.

    python tests/papers.py OUT --share 50

writes OUT/ddsm (cases with .ics and lossless JPEG) and OUT/cbis-ddsm (four tables, DICOM files of mammograms, masks and
cut-outs) with one image where the real sets have fifty.
"""

import argparse
import csv
import io
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import imagecodecs
import numpy as np

from rayad.datasets import phantom
from rayad.datasets.exam import Exam
from tests.dicoms import mammogram, written
from tests.losslessjpeg import encoded

CASES = 695
"""Healthy cases of DDSM."""
IMAGES = {("mass", "test"): 361, ("calc", "test"): 284, ("mass", "train"): 1231, ("calc", "train"): 1227}
"""Mammograms in the four tables of CBIS-DDSM."""
KINDS = {"mass": "mass", "calc": "calcification"}
SIDES = {"L": "LEFT", "R": "RIGHT"}
HEADER = (
    *("patient_id", "breast density", "left or right breast", "image view", "abnormality id", "abnormality type"),
    *("pathology", "assessment", "subtlety", "image file path", "cropped image file path", "ROI mask file path"),
)


@dataclass(frozen=True)
class Sizes:
    """How many images there are, and how large they are."""

    share: int = 50
    """One image where the real sets have so many."""
    height: int = 512
    width: int = 384
    spacing_mm: float = 0.4

    def of(self, real: int) -> int:
        return max(1, round(real / self.share))

    def phantoms(self, **settings: object) -> phantom.Dataset:
        return phantom.Dataset(height=self.height, width=self.width, spacing_mm=self.spacing_mm, **settings)


def write_ddsm(folder: Path, sizes: Sizes) -> int:
    """Healthy cases of four films in normal volumes, and a case with a cancer; returns the number of healthy films."""
    healthy = sizes.phantoms(patients=sizes.of(CASES), diseased=0.0)
    for number in range(healthy.patients):
        place = folder / f"normals/normal_{number // 10 + 1:02d}/case{number + 1:04d}"
        _write_case(place, f"B-{number + 1:04d}-1", healthy, number, sizes)
    ill = replace(healthy, patients=1, diseased=1.0, seed=1)
    _write_case(folder / "cancers/cancer_01/case9001", "B-9001-1", ill, 0, sizes, overlay=True)
    return 4 * healthy.patients


def write_cbis(folder: Path, sizes: Sizes) -> dict[tuple[str, str], int]:
    """The four tables and their files; returns the number of mammograms in each."""
    ill = sizes.phantoms(patients=8 * sizes.of(sum(IMAGES.values())), diseased=1.0, seed=2)
    exams = [exam for exam in ill.exams() if exam.lesions]
    counts = {}
    for (kind, part), real in IMAGES.items():
        with_kind = [exam for exam in exams if {lesion.kind for lesion in exam.lesions} == {KINDS[kind]}]
        chosen = with_kind[: sizes.of(real)]
        exams = [exam for exam in exams if exam.patient_id not in {one.patient_id for one in chosen}]
        rows = [row for exam in chosen for row in _write_mammogram(folder, ill, exam, kind, part)]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([HEADER, *rows])
        (folder / f"{kind}_case_description_{part}_set.csv").write_text(text.getvalue(), newline="")
        counts[kind, part] = len(chosen)
    return counts


def _write_case(
    place: Path, name: str, dataset: phantom.Dataset, number: int, sizes: Sizes, overlay: bool = False
) -> None:
    place.mkdir(parents=True)
    lines = [f"filename {name}", "DENSITY 2", "DIGITIZER LUMISYS LASER", "SELECTED"]
    for view in ("CC", "MLO"):
        of_view = replace(dataset, pectoral=view == "MLO")
        for exam in of_view.exams()[2 * number : 2 * number + 2]:
            film = f"{SIDES[exam.laterality]}_{view}"
            has_outline = overlay and bool(exam.lesions)
            lines.append(
                f"{film} LINES {sizes.height} PIXELS_PER_LINE {sizes.width} BITS_PER_PIXEL 12 "
                f"RESOLUTION {1000 * sizes.spacing_mm:g} {'OVERLAY' if has_outline else 'NON_OVERLAY'}"
            )
            stem = f"{name.replace('-', '_')}.{film}"
            (place / f"{stem}.LJPEG").write_bytes(_film(of_view.pixels(exam)))
            if has_outline:
                (place / f"{stem}.OVERLAY").write_text(
                    "TOTAL_ABNORMALITIES 1\nABNORMALITY 1\nLESION_TYPE MASS SHAPE OVAL MARGINS CIRCUMSCRIBED\n"
                    "PATHOLOGY MALIGNANT\nTOTAL_OUTLINES 1\nBOUNDARY\n"
                    f"20 20 {'2 ' * 9}{'4 ' * 9}{'6 ' * 9}{'0 ' * 9}#\n"
                )
    (place / f"{name}.ics").write_text("\n".join(lines) + "\n")


def _film(pixels: np.ndarray) -> bytes:
    """Grey levels of a Lumisys scanner, whose optical density is (4096.99 - grey) / 1009.01, as lossless JPEG."""
    density = 4 * (1 - pixels.astype(float))
    grey = np.clip(np.rint(4096.99 - 1009.01 * density), 0, 4095).astype(np.uint16)
    if grey.size < 1_000_000:
        return encoded(grey)
    return imagecodecs.jpeg8_encode(grey, lossless=True, predictor=1, bitspersample=16)  # as DDSM says it has


def _write_mammogram(folder: Path, dataset: phantom.Dataset, exam: Exam, kind: str, part: str) -> list[list[str]]:
    """The files of a mammogram, and its rows of the table."""
    patient, side = f"P_{int(exam.patient_id.rpartition('-')[2]) + 1:05d}", SIDES[exam.laterality]
    name = f"{kind.capitalize()}-{ {'train': 'Training', 'test': 'Test'}[part] }_{patient}_{side}_MLO"
    image = np.rint(dataset.pixels(exam) * 65535).astype(np.uint16)
    full = _write_series(folder, name, [image])[0]
    rows = []
    for number, lesion in enumerate(exam.lesions, 1):
        mask = dataset.lesion_mask(exam, lesion)
        inside_rows, inside_columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        cut_out = image[inside_rows[0] : inside_rows[-1] + 1, inside_columns[0] : inside_columns[-1] + 1]
        cropped, roi = _write_series(folder, f"{name}_{number}", [cut_out, mask.astype(np.uint8) * 255])
        pathology = "MALIGNANT" if lesion.malignant else "BENIGN"
        rows.append(
            [patient, "2", side, "MLO", str(number), KINDS[kind], pathology, "4", "3", full, cropped, f"{roi}\n"]
        )
    return rows


def _write_series(folder: Path, name: str, images: list[np.ndarray]) -> list[str]:
    """DICOM files of one series below a folder as the archive names it; their paths as the tables have them."""
    uid = f"1.2.3.{zlib.crc32(name.encode())}"
    place = folder / name / f"{uid}.1" / f"{uid}.2"
    place.mkdir(parents=True)
    paths = []
    for number, pixels in enumerate(images):
        attributes = {"SeriesInstanceUID": f"{uid}.2", "PatientID": name, "ImagerPixelSpacing": None}
        (place / f"1-{number + 1}.dcm").write_bytes(written(mammogram(np.ascontiguousarray(pixels), **attributes)))
        paths.append(f"{name}/{uid}.1/{uid}.2/{number:06d}.dcm")
    return paths


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("out", type=Path)
    options.add_argument("--share", type=int, default=50)
    options.add_argument("--height", type=int, default=512)
    options.add_argument("--width", type=int, default=384)
    options.add_argument("--spacing-mm", type=float, default=0.4)
    given = options.parse_args()
    made_sizes = Sizes(given.share, given.height, given.width, given.spacing_mm)
    print(write_ddsm(given.out / "ddsm", made_sizes), "healthy films")
    print(write_cbis(given.out / "cbis-ddsm", made_sizes))
