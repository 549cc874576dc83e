"""Synthetic mammograms with exact lesion masks, drawn when they are asked for; no files.

Both breasts of each patient in oblique view. An image follows from the options, the seed and its exam_id
alone, so every worker draws the same. They serve demonstrations and tests; what a detector does on them
says nothing about patients. ``phantom_breast`` draws the healthy tissue, ``phantom_lesions`` the lesions.
"""

import math
import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from rayad.arrays import Mask, Pixels
from rayad.datasets import phantom_breast, phantom_lesions
from rayad.datasets.exam import Exam, Lesion, in_order
from rayad.datasets.phantom_breast import Breast
from rayad.datasets.phantom_lesions import Placed
from rayad.errors import DatasetError, OptionError
from rayad.options import Count, Seed, Share, Spacing, Within

LIFE_SIZE_MM = (204.8, 153.6)
"""Height and width of an image that shows a breast of usual size; a smaller one shows a smaller breast."""
SMALLEST_PX = 64
LESIONS = {
    "ROUND": ("mass", phantom_lesions.round_mass),
    "CLUSTER": ("calcification", phantom_lesions.cluster),
    "SPICULATED": ("mass", phantom_lesions.spiculated_mass),
}
"""Finding -> kind and how it is drawn; the diseased patients take turns."""
SECOND_LESION = 0.2
"""Share of the diseased breasts that have a lesion of the next finding too."""
MIRRORED = {"L": slice(None), "R": slice(None, None, -1)}
"""Everything is drawn as a left breast; the columns of a right one run the other way."""


@dataclass(frozen=True)
class Patient:
    """What both breasts of a patient share."""

    number: int
    traits: np.ndarray
    """Numbers in [0, 1] that shape the breasts."""
    density: str
    findings: dict[str, tuple[str, ...]]
    """Side -> findings in that breast."""


@dataclass(frozen=True)
class Dataset:
    """Synthetic mammograms: two oblique views a patient, made on the fly."""

    CHOOSES: ClassVar[tuple[str, ...]] = ("patients",)

    source: str = ""
    """Not used: there are no files."""
    patients: Count = 60
    """Number of patients, each with an image of either breast."""
    seed: Seed = 0
    """Random seed of everything that is drawn."""
    diseased: Share = 0.4
    """Share of the patients who have a lesion in one breast."""
    height: Annotated[int, Within(64, 10_000)] = 512
    """Height of an image, px."""
    width: Annotated[int, Within(64, 10_000)] = 384
    """Width of an image, px."""
    spacing_mm: Spacing = 0.4
    """Pixel spacing of the images, mm."""
    pectoral: bool = True
    """Show the pectoral muscle in the upper corner."""

    def exams(self) -> list[Exam]:
        """Two exams a patient; OptionError if the options make no image."""
        self._check()
        return in_order(self._exam(number, side) for number in range(self.patients) for side in "LR")

    def pixels(self, exam: Exam) -> Pixels:
        """The image, in steps of 1/65535, noise of the film included."""
        number, side = self._parse(exam.exam_id)
        patient, rng = self._patient(number), self._rng(number, side, "tissue")
        breast = self._breast(patient, side)
        image = phantom_breast.attenuation(rng, breast, patient.density, self.pectoral)
        placed_lesions = [placed for _, placed in self._lesions(patient, side, breast)]
        for placed in placed_lesions + phantom_lesions.dust(rng, breast):
            image[placed.window] += placed.drawing.contrast * phantom_breast.flatness(image[placed.window])
        return phantom_breast.film(rng, image)[:, MIRRORED[side]].copy()

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        """The pixels that the lesion changed; of a cluster also what lies between its specks."""
        number, side = self._parse(exam.exam_id)
        patient = self._patient(number)
        for drawn_lesion, placed in self._lesions(patient, side, self._breast(patient, side)):
            if drawn_lesion == lesion:
                mask = np.zeros((self.height, self.width), bool)
                mask[placed.window] = placed.drawing.mask
                return mask[:, MIRRORED[side]].copy()
        raise DatasetError(f"{exam.exam_id}: this phantom has no such {lesion.kind}")

    def _check(self) -> None:
        if self.patients < 1 or self.seed < 0:
            raise OptionError(f"a phantom needs patients and a seed >= 0, not {self.patients} and {self.seed}")
        if not 0 <= self.diseased <= 1:
            raise OptionError(f"diseased is a share of the patients, 0 to 1, not {self.diseased}")
        if min(self.height, self.width) < SMALLEST_PX or not self.spacing_mm > 0:
            size = f"{self.height} x {self.width} px of {self.spacing_mm} mm"
            raise OptionError(f"a phantom has at least {SMALLEST_PX} x {SMALLEST_PX} px, not {size}")

    def _exam(self, number: int, side: str) -> Exam:
        patient, lesions = self._patient(number), ()
        if patient.findings[side]:
            placed_lesions = self._lesions(patient, side, self._breast(patient, side))
            lesions = tuple(lesion for lesion, _ in placed_lesions)
        name = f"phantom-{self.seed}-{number:04d}"
        return Exam(
            exam_id=f"{name}-{side}",
            patient_id=name,
            url=f"phantom:{name}-{side}",
            anomalous=bool(lesions),
            view="MLO",
            laterality=side,
            density=patient.density,
            spacing_mm=self.spacing_mm,
            lesions=lesions,
        )

    def _parse(self, exam_id: str) -> tuple[int, str]:
        match = re.fullmatch(r"phantom-(\d+)-(\d{4,})-([LR])", exam_id)
        if match is None or int(match[1]) != self.seed or int(match[2]) >= self.patients:
            id_range = f"phantom-{self.seed}-0000-L to phantom-{self.seed}-{self.patients - 1:04d}-R"
            raise DatasetError(f"{exam_id}: this phantom has {id_range}")
        return int(match[2]), match[3]

    def _patient(self, number: int) -> Patient:
        rng = self._rng(number, "", "patient")
        traits, density = rng.uniform(size=phantom_breast.TRAITS), str(rng.choice(list("FGD")))
        before, after = (math.floor(count * self.diseased) for count in (number, number + 1))
        first, names = before % len(LESIONS), [*LESIONS, *LESIONS]
        findings = names[first : first + 1 + (rng.uniform() < SECOND_LESION)] if after > before else []
        side = str(rng.choice(["L", "R"]))
        return Patient(number, traits, density, {"L": (), "R": (), side: tuple(findings)})

    def _breast(self, patient: Patient, side: str) -> Breast:
        deviation = self._rng(patient.number, side, "shape").normal(0, 0.05, phantom_breast.TRAITS)
        size = (self.height, self.width)
        scale = self.spacing_mm * min(px / mm for px, mm in zip(size, LIFE_SIZE_MM, strict=True))
        traits = np.clip(patient.traits + deviation, 0, 1)
        return phantom_breast.shape_breast(traits, patient.density, size, self.spacing_mm / scale)

    def _lesions(self, patient: Patient, side: str, breast: Breast) -> list[tuple[Lesion, Placed]]:
        rng = self._rng(patient.number, side, "lesions")
        lesions = []
        for finding in patient.findings[side]:
            kind, draw = LESIONS[finding]
            placed = phantom_lesions.place(rng, breast, draw(rng, breast.spacing_mm))
            col = range(self.width)[MIRRORED[side]][placed.col]
            circle = (float(placed.row), float(col), placed.drawing.radius_px)
            lesions.append((Lesion(kind, finding, malignant=finding == "SPICULATED", circle=circle), placed))
        return lesions

    def _rng(self, number: int, side: str, purpose: str) -> np.random.Generator:
        return np.random.default_rng(list(f"{self.seed} {number} {side} {purpose}".encode()))
