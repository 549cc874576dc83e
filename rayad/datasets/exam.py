"""What every data set yields: an exam a mammogram (or other image), with the lesions marked in it.

A data set is a module of this folder that has a frozen dataclass ``Dataset`` with the methods of
``Images``. Positions are pixels of the original image; a pixel's centre has whole-number coordinates.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from skimage.draw import polygon, polygon_perimeter

from rayad import storage
from rayad.arrays import Image, Mask, Pixels
from rayad.errors import DatasetError, ImageError
from rayad.imaging import raster
from rayad.imaging.picture import Source
from rayad.imaging.plausibility import Doubt, forced, without_other


@dataclass(frozen=True)
class Lesion:
    """One finding in one image."""

    kind: str
    """In mammography mass, calcification, distortion or asymmetry: a row of the results each; or other."""
    finding: str = ""
    """The corpus's own code for it."""
    malignant: bool | None = None
    """None: not known."""
    circle: tuple[float, float, float] | None = None
    """Row, column and radius in px of a circle around it; None where the corpus gives none."""
    mask_url: str = ""
    """Image of two values, the higher is the lesion; goes before the outline."""
    outline: tuple[tuple[float, float], ...] = ()
    """Row and column in px of each corner of its outline, in their order; goes before the circle."""

    @property
    def located(self) -> bool:
        """Does the corpus say where it is? Only then is there a mask."""
        return bool(self.mask_url or self.outline or self.circle)


@dataclass(frozen=True)
class Exam:
    """One image, its patient and its label."""

    exam_id: str
    patient_id: str
    url: str
    anomalous: bool | None
    """None: not known. True without a located lesion: somewhere in the image."""
    view: str
    """MLO, CC, or empty: not known or not a mammogram."""
    laterality: str
    """L, R, or empty."""
    density: str
    """The corpus's own class of the tissue, or empty."""
    spacing_mm: float
    """Distance of neighbouring pixels in the original image."""
    lesions: tuple[Lesion, ...] = ()
    scanner: str = ""
    """What made the image, or empty: intensities of different scanners differ."""
    doubts: tuple[Doubt, ...] = ()
    """Doubts that its header raises."""
    wall: str = ""
    """At which edge its header says that the chest wall is, left or right; empty: nothing says it."""
    part: str = field(default="", repr=False)
    """Part into which the data set's makers put it: train, validation, calibration or test; empty: into none."""
    split: str = field(default="", repr=False, compare=False)
    """Split that a list of images gives it; empty: `splits.assign` does."""
    other: "Exam | None" = field(default=None, repr=False)
    """The patient's other breast in the same view, where it is asked for (rayad/datasets/sides.py)."""

    def described(self) -> dict[str, Any]:
        """All that its image and its truth are made of, for JSON: no part or split, which change neither."""
        alone = asdict(replace(self, other=None))
        facts = {name: value for name, value in alone.items() if name not in ("part", "split", "other")}
        return facts | ({"other": self.other.described()} if self.other else {})


@dataclass(frozen=True)
class Excluded:
    """A file that a data set leaves out, because it is not what the set is of."""

    url: str
    reason: str


@runtime_checkable
class Images(Protocol):
    """What a data set's ``Dataset`` can do; it is a value, so it pickles."""

    def exams(self) -> list[Exam]:
        """All exams, sorted by exam_id; DatasetError if files and labels do not fit together."""
        ...

    def pixels(self, exam: Exam) -> Image:
        """The image at its original resolution."""
        ...

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        """The lesion's pixels, of the shape of the image; DatasetError if the lesion is not located."""
        ...


def origin_of(dataset: Images) -> Images:
    """The data set that has the pixels: itself, but for a list of another's images (rayad/datasets/exams.py)."""
    return getattr(dataset, "listed_from", dataset)


def name_of(dataset: Images) -> str:
    """The name under which a data set is found; empty: it is the class of a library's user."""
    package, _, name = type(dataset).__module__.rpartition(".")
    return name if package == __package__ else ""


def read_by(dataset: Images) -> list[str]:
    """The folders and files that a data set is read from."""
    names = ("source", "table", "tables")
    places = (getattr(images, name, "") for images in (dataset, origin_of(dataset)) for name in names)
    return list(dict.fromkeys(place for place in places if place))


MOST_BETWEEN = 0.02
"""Share of a mask's places that may lie between its two values, as blurred edges do."""


NOT_UTF8 = "its name, or that of its patient or mask, is not UTF-8"


def listed(dataset: Images) -> tuple[list[Exam], list[Excluded]]:
    """The exams and what is left out, in one pass over the files: the method `listed` of a data set that has it.

    A file whose name is not UTF-8 is left out: it could not be written down.
    """
    list_both = getattr(dataset, "listed", None)
    exams, left_out = list_both() if list_both else (dataset.exams(), [])
    nameless = [
        Excluded(exam.url, "its name, or its patient's or mask's, is not UTF-8") for exam in exams if _nameless(exam)
    ]
    excluded = [Excluded(storage.encodable(e.url), storage.encodable(e.reason)) for e in (*left_out, *nameless)]
    return [exam for exam in exams if not _nameless(exam)], excluded


def _nameless(exam: Exam) -> bool:
    texts = (exam.exam_id, exam.patient_id, exam.url, *(lesion.mask_url for lesion in exam.lesions))
    return any(storage.encodable(text) != text for text in texts)


def reasons(left_out: Iterable[Excluded]) -> list[dict[str, Any]]:
    """The files that were left out, by their reason: "count", "reason" and "example", the most frequent first.

    A path in it is a dash; a number that differs between files of one reason is N.
    """
    by_reason: dict[str, list[tuple[str, str]]] = {}
    for exclusion in left_out:
        text = re.sub(r"\S*/\S*", "-", exclusion.reason).removeprefix("- ")
        by_reason.setdefault(re.sub(r"\d+(\.\d+)?", "N", text), []).append((text, exclusion.url))
    rows = [
        {"count": len(files), "reason": reason if len(dict(files)) > 1 else files[0][0], "example": files[0][1]}
        for reason, files in by_reason.items()
    ]
    return sorted(rows, key=lambda row: -row["count"])


def source_of(dataset: Images, exam: Exam) -> Source:
    """The exam's image and that of the other breast, where it has one, and what is known of them."""
    other, doubts = None, exam.doubts
    if exam.other:
        try:
            other = source_of(dataset, exam.other)
        except ImageError as error:
            doubts = (*doubts, without_other(error))
    pixels = dataset.pixels(exam)
    facts = exam.spacing_mm, exam.view, exam.density, forced(), doubts, exam.wall, exam.laterality
    return Source(pixels, *facts, other=other)


def in_order(exams: Iterable[Exam]) -> list[Exam]:
    """The exams sorted by exam_id; DatasetError if two have the same."""
    ordered = sorted(exams, key=lambda exam: (exam.exam_id, exam.url))
    repeated_ids = [exam_id for exam_id, count in Counter(exam.exam_id for exam in ordered).items() if count > 1]
    if repeated_ids:
        files = ", ".join(exam.url for exam in ordered if exam.exam_id == repeated_ids[0])
        raise DatasetError(f"{shortened(repeated_ids)}: one image an exam expected, got {files}")
    return ordered


def read_grey(url: str) -> Pixels:
    """The grey image at the URL; ImageError if it is not one."""
    return raster.grey(raster.read(url), url)


def read_colour(url: str) -> Image:
    """The image at the URL with its colours; ImageError if it is grey."""
    return raster.colour(raster.read(url), url)


def circle_mask(shape: tuple[int, int], circle: tuple[float, float, float]) -> Mask:
    """Pixels of an image whose centre is at most the radius away from the circle's centre."""
    row, col, radius = circle
    rows = np.arange(shape[0])[:, None] - row
    cols = np.arange(shape[1])[None, :] - col
    return np.asarray(np.hypot(rows, cols) <= radius)


def outline_mask(shape: tuple[int, int], points: np.ndarray) -> Mask:
    """Pixels of an image that an outline of points (n, 2) encloses, with the outline; one or two are themselves."""
    mask = np.zeros(shape, dtype=bool)
    if len(points) > 2:
        mask[polygon(points[:, 0], points[:, 1], shape)] = True
        rows, columns = polygon_perimeter(*np.round(points).astype(int).T, shape=shape, clip=False)
    else:
        rows, columns = np.round(points).astype(int).T
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    mask[rows[inside], columns[inside]] = True
    return mask


def marked(exam: Exam, lesion: Lesion, shape: tuple[int, int]) -> Mask:
    """What the lesion's outline or else its circle encloses; DatasetError if it has neither.

    Args:
        shape: rows and columns of the exam's image.
    """
    if lesion.outline:
        return outline_mask(shape, np.array(lesion.outline))
    if lesion.circle is None:
        raise DatasetError(f"{exam.exam_id}: no mask for this {lesion.kind}, the data set gives no place")
    return circle_mask(shape, lesion.circle)


def read_mask(exam: Exam, lesion: Lesion, shape: tuple[int, int]) -> Mask:
    """The lesion's mask from its file, else its outline or its circle; DatasetError if it has none or does not fit.

    Args:
        shape: rows and columns of the exam's image.
    """
    if lesion.mask_url:
        pixels = np.atleast_3d(raster.read(lesion.mask_url).pixels).max(axis=2)
        if pixels.shape != shape:
            raise DatasetError(f"{lesion.mask_url}: mask of {pixels.shape} px for {exam.url} of {shape} px")
        return plausible(two_valued(pixels, lesion.mask_url), lesion.mask_url)
    return plausible(marked(exam, lesion, shape), f"{exam.exam_id}: the outline of this {lesion.kind}")


def two_valued(pixels: np.ndarray, name: str) -> Mask:
    """The places of the higher of two values; blurred edges belong to the nearer one.

    Raises:
        DatasetError: the values are those of another image, or all the same.
    """
    low, high = float(pixels.min()), float(pixels.max())
    between = (pixels > low + 0.1 * (high - low)) & (pixels < high - 0.1 * (high - low))
    if low == high or between.mean() > MOST_BETWEEN:
        fault = f"every value is {low:g}" if low == high else "this is another image"
        raise DatasetError(f"{name}: a mask of two values expected, {fault}")
    return np.asarray(pixels > (low + high) / 2)


def plausible(mask: Mask, name: str) -> Mask:
    """The mask; DatasetError where it has no place, or more than half of them, as one that is inverted."""
    if not mask.any():
        raise DatasetError(f"{name}: has no place inside the image")
    if mask.mean() > 0.5:
        raise DatasetError(f"{name}: covers {mask.mean():.0%} of the image; it is inverted, or no lesion")
    return mask


def shortened(names: Iterable[str], at_most: int = 5) -> str:
    """The names in a message: the first few, and how many more."""
    ordered = sorted(names)
    more = f" and {len(ordered) - at_most} more" if len(ordered) > at_most else ""
    return ", ".join(ordered[:at_most]) + more
