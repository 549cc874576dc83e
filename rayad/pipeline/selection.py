"""The test images of Dietrichstein et al. 2022: those whose lesions are small beside a patch.

Section 3 of the paper says: "the annotation mask area must be smaller than 4 times our patch area for masses, and it
should contain the whole calcifications"; 79 images with a mass and 30 with calcifications were left of the 361 and 284
of CBIS-DDSM's test part. The sentence can be read in several ways (`READINGS`). All are counted, so that one sees which
comes nearest to the paper; one is chosen for each kind.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rayad.arrays import Mask
from rayad.datasets.exam import Exam, Excluded, Images, Lesion
from rayad.errors import DatasetError, OptionError, reason
from rayad.pool import Mapper

PAPER = {"mass": 79, "calcification": 30}
"""Kind of lesion -> images that the paper tests on."""
OTHER = "other"
"""Kind of a lesion that no reading keeps: its places are neither healthy nor of a row of the results."""
EQUAL = 1e-9
"""Share by which two lengths or areas may differ that are the same: a spacing such as 0.05 is no binary fraction."""


@dataclass(frozen=True)
class Measure:
    """How large a lesion is."""

    area_px: int
    """Pixels of the original image."""
    area_mm2: float
    height_mm: float
    """Of the box around it, along the rows."""
    width_mm: float
    touches_border: bool
    """Whether it reaches the first or last row or column of the image, so that a part of it may lie outside."""
    together_mm2: float
    """Area of all lesions of its kind in the image, what overlaps once; nan where one of them cannot be measured."""


@dataclass(frozen=True)
class Reading:
    """A way to read the paper's sentence."""

    kind: str
    """Of the lesions that it is about."""
    name: str
    sentence: str
    """What it keeps."""
    keeps: Callable[[Measure, float], bool]
    """Whether it keeps a lesion, given the side of a patch in mm."""


@dataclass(frozen=True)
class Count:
    """How many images a reading keeps."""

    kind: str
    reading: str
    sentence: str
    images: int
    paper: int
    """Images of this kind in the paper."""
    nearest: bool
    """Whether no other reading of this kind is nearer to the paper."""
    chosen: bool

    @property
    def line(self) -> str:
        """What a reader wants to know of it."""
        marks = ", ".join(filter(None, ["chosen" * self.chosen, "the nearest to it" * self.nearest]))
        return f"{self.images} images with {self.sentence}, the paper has {self.paper}{f' ({marks})' if marks else ''}"


@dataclass(frozen=True)
class Selection:
    """What is tested on."""

    exams: tuple[Exam, ...]
    """With what is not kept of their lesions as of kind `OTHER`; healthy ones as they were."""
    left_out: tuple[Excluded, ...]
    """Images without a lesion that is kept, and lesions that cannot be measured."""
    counts: tuple[Count, ...]
    """Of all readings, whichever was chosen."""


def small(measure: Measure, side_mm: float) -> bool:
    """Whether a lesion's area is below that of four patches."""
    return _below_four_patches(measure.area_mm2, side_mm)


def small_together(measure: Measure, side_mm: float) -> bool:
    """Whether the area of all lesions of its kind in the image is below that of four patches."""
    return _below_four_patches(measure.together_mm2, side_mm)


def fits(measure: Measure, side_mm: float) -> bool:
    """Whether two patches by two contain the whole lesion."""
    return max(measure.height_mm, measure.width_mm) <= 2 * side_mm * (1 + EQUAL)


def whole(measure: Measure, side_mm: float) -> bool:
    """Whether the image contains the whole lesion; the patch does not matter."""
    return not measure.touches_border


def _below_four_patches(area_mm2: float, side_mm: float) -> bool:
    return area_mm2 < 4 * side_mm**2 * (1 - EQUAL)


READINGS = (
    Reading("mass", "area", "masses of less than the area of four patches", small),
    Reading(
        "mass", "together", "masses where those of the image have less than the area of four together", small_together
    ),
    Reading("mass", "box", "masses that fit into two patches by two", fits),
    Reading("calcification", "whole", "calcifications whose mask does not touch the border of the image", whole),
    Reading("calcification", "box", "calcifications that fit into two patches by two", fits),
    Reading("calcification", "area", "calcifications of less than the area of four patches", small),
)


def select(
    pool: Mapper, dataset: Images, exams: Sequence[Exam], chosen: Mapping[str, str], side_mm: float
) -> Selection:
    """The exams with lesions that the chosen readings keep, and what every reading would keep.

    A lesion that is not kept becomes one of kind `OTHER`, and one that cannot be measured loses its place too, so that
    no place of its image counts as healthy. Exams of healthy images stay as they are.

    Args:
        exams: of the test images, located lesions in them; each mask is read once, on the pool.
        chosen: kind of lesion -> name of a reading, see `READINGS`; lesions of other kinds are not kept.
        side_mm: of a patch.

    Raises:
        OptionError: there is no such kind or reading.
        DatasetError: no mask is there, or a chosen reading keeps no image.
    """
    readings = readings_of(chosen)
    measures = measure(pool, dataset, exams)
    if not any(isinstance(size, Measure) for of_exam in measures for size in of_exam):
        why = next((f": {size}" for of_exam in measures for size in of_exam), "")
        raise DatasetError(
            f"masks of lesions are wanted to select test images, none of {len(exams)} images has one{why}"
        )
    counts = count(exams, measures, readings, side_mm)
    for reading_count in counts:
        if reading_count.chosen and not reading_count.images:
            raise DatasetError(
                f"no image of {len(exams)} has {reading_count.sentence} (a patch has {side_mm:g} mm); images of each "
                "reading: " + ", ".join(f"{other.kind} {other.reading} {other.images}" for other in counts)
            )
    selected, left_out = [], []
    names = ", ".join(f"{reading.kind}: {reading.name}" for reading in readings)
    for exam, of_exam in zip(exams, measures, strict=True):
        left_out += [Excluded(exam.url, size) for size in of_exam if isinstance(size, str)]
        lesions = tuple(_selected(exam, of_exam, readings, side_mm))
        if exam.anomalous is False or any(lesion.kind != OTHER for lesion in lesions):
            selected.append(replace(exam, lesions=lesions))
        else:
            left_out.append(Excluded(exam.url, f"it has no lesion that the test selection keeps ({names})"))
    return Selection(tuple(selected), tuple(left_out), tuple(counts))


def readings_of(chosen: Mapping[str, str]) -> list[Reading]:
    """The readings of these names; OptionError where there is no such kind or reading."""
    return [_reading(kind, name) for kind, name in chosen.items()]


def measure(pool: Mapper, dataset: Images, exams: Sequence[Exam]) -> list[tuple[Measure | str, ...]]:
    """Of every exam what each of its lesions measures, or why it cannot be measured."""
    return list(pool.map(measure_exam, exams, "lesions", (dataset,), _unmeasured))


def measure_exam(dataset: Images, exam: Exam) -> tuple[Measure | str, ...]:
    """What each lesion of an image measures, or why it cannot be measured."""
    masks = [_mask(dataset, exam, lesion) for lesion in exam.lesions]
    kinds = [lesion.kind for lesion in exam.lesions]
    together_mm2 = {
        kind: _together([mask for mask, own in zip(masks, kinds, strict=True) if own == kind]) * exam.spacing_mm**2
        for kind in set(kinds)
    }
    return tuple(
        mask if isinstance(mask, str) else _measured(mask, exam.spacing_mm, together_mm2[kind])
        for mask, kind in zip(masks, kinds, strict=True)
    )


def count(
    exams: Sequence[Exam], measures: Sequence[Sequence[Measure | str]], chosen: Sequence[Reading], side_mm: float
) -> list[Count]:
    """The images with a lesion that a reading keeps, for each of `READINGS`."""
    images = [
        sum(any(_kept(exam, of_exam, [reading], side_mm)) for exam, of_exam in zip(exams, measures, strict=True))
        for reading in READINGS
    ]
    away = [abs(number - PAPER[reading.kind]) for number, reading in zip(images, READINGS, strict=True)]
    least = {
        kind: min(number for number, reading in zip(away, READINGS, strict=True) if reading.kind == kind)
        for kind in PAPER
    }
    return [
        Count(
            kind=reading.kind,
            reading=reading.name,
            sentence=reading.sentence,
            images=number,
            paper=PAPER[reading.kind],
            nearest=distance == least[reading.kind],
            chosen=reading in chosen,
        )
        for number, distance, reading in zip(images, away, READINGS, strict=True)
    ]


def _reading(kind: str, name: str) -> Reading:
    for reading in READINGS:
        if (reading.kind, reading.name) == (kind, name):
            return reading
    all_readings = ", ".join(f"{reading.kind}={reading.name}" for reading in READINGS)
    raise OptionError(f"no reading {kind}={name}; there are {all_readings}")


def _mask(dataset: Images, exam: Exam, lesion: Lesion) -> Mask | str:
    """A lesion's mask, or why there is none."""
    if not lesion.located:
        return f"a {lesion.kind} without a mask"
    try:
        mask = dataset.lesion_mask(exam, lesion)
    except Exception as error:  # noqa: BLE001, whatever it is, the other lesions are measured
        return reason(error)
    return mask if mask.any() else f"the mask of a {lesion.kind} has no place"


def _together(masks: Sequence[Mask | str]) -> float:
    """Pixels of all masks, what overlaps once; nan where one of them is not there."""
    drawn = [mask for mask in masks if not isinstance(mask, str)]
    return float(np.logical_or.reduce(drawn).sum()) if len(drawn) == len(masks) else math.nan


def _measured(mask: Mask, spacing_mm: float, together_mm2: float) -> Measure:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    area_px = int(mask.sum())
    return Measure(
        area_px=area_px,
        area_mm2=area_px * spacing_mm**2,
        height_mm=float(rows[-1] - rows[0] + 1) * spacing_mm,
        width_mm=float(columns[-1] - columns[0] + 1) * spacing_mm,
        touches_border=bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()),
        together_mm2=together_mm2,
    )


def _unmeasured(why: str, exam: Exam) -> tuple[str, ...]:
    """Of an image whose process ended."""
    return tuple(f"{exam.url}: {why}" for _ in exam.lesions)


def _kept(exam: Exam, measures: Sequence[Measure | str], readings: Sequence[Reading], side_mm: float) -> Iterator[bool]:
    """Of each lesion of an exam whether the reading of its kind keeps it."""
    for lesion, size in zip(exam.lesions, measures, strict=True):
        yield isinstance(size, Measure) and any(
            reading.kind == lesion.kind and reading.keeps(size, side_mm) for reading in readings
        )


def _selected(
    exam: Exam, measures: Sequence[Measure | str], readings: Sequence[Reading], side_mm: float
) -> Iterator[Lesion]:
    """The exam's lesions, those that are not kept as others, and without a place where they have no measure."""
    kept = _kept(exam, measures, readings, side_mm)
    for lesion, size, is_kept in zip(exam.lesions, measures, kept, strict=True):
        if is_kept:
            yield lesion
        elif isinstance(size, Measure):
            yield replace(lesion, kind=OTHER)
        else:
            yield replace(lesion, kind=OTHER, mask_url="", circle=None, outline=())
