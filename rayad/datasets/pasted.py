"""Drawn lesions pasted into healthy images: exact truth where a corpus has none to spare for choices.

Each image of another data set's healthy validation patients comes once with a round mass, once with a
spiculated mass and once with a cluster of microcalcifications, at a random place of its tissue. The
lesions are those of the phantom; they serve to choose settings, not to report figures.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from rayad import catalog
from rayad.arrays import Mask, Pixels
from rayad.datasets.exam import Exam, Images, Lesion, in_order, listed
from rayad.datasets.phantom import LESIONS
from rayad.datasets.phantom_lesions import Drawing, Placed
from rayad.datasets.splits import assign
from rayad.errors import DatasetError
from rayad.imaging.breast import find_breast, find_pectoral
from rayad.options import Seed, Within


@dataclass(frozen=True)
class Dataset:
    """Healthy validation images of another data set, each with one drawn lesion."""

    source: str = ""
    """Folder or URL of that data set."""
    dataset: str = "mias"
    """Name of the data set whose healthy images are taken."""
    gain: Annotated[float, Within(0, 1000)] = 1.5
    """Factor from the phantom's contrast, in attenuation, to full scales of these images."""
    seed: Seed = 0
    """Random seed of the lesions and their places."""

    def exams(self) -> list[Exam]:
        """Three exams an image, all anomalous; DatasetError where no patient is in the validation split."""
        exams, _ = listed(self._base)
        splits = assign(exams)
        healthy = [exam for exam in exams if splits[exam.exam_id] == "validation"]
        if not healthy:
            raise DatasetError(f"{self.source}: no healthy validation patient to paste lesions into")
        return in_order(
            replace(
                exam,
                exam_id=f"{exam.exam_id}-{name}",
                anomalous=True,
                lesions=(Lesion(kind, name, circle=(0.0, 0.0, 0.0)),),
            )
            for exam in healthy
            for name, (kind, _) in LESIONS.items()
        )

    def pixels(self, exam: Exam) -> Pixels:
        """The healthy image with its lesion, cut to [0, 1]."""
        pixels = self._healthy(exam).copy()
        placed = self._placed(exam, pixels)
        pixels[placed.window] += self.gain * placed.drawing.contrast
        return np.clip(pixels, 0, 1)

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        """The pixels that the lesion changed; of a cluster also what lies between its specks."""
        pixels = self._healthy(exam)
        placed, mask = self._placed(exam, pixels), np.zeros(pixels.shape, bool)
        mask[placed.window] = placed.drawing.mask
        return mask

    @property
    def _base(self) -> Images:
        return catalog.configure("datasets", self.dataset, {"source": self.source})

    def _healthy(self, exam: Exam) -> Pixels:
        return self._base.pixels(exam)

    def _placed(self, exam: Exam, pixels: Pixels) -> Placed:
        """The lesion at a place whose window lies in the image and whose centre lies in the tissue."""
        name = hashlib.sha256(exam.exam_id.encode()).digest()
        rng = np.random.default_rng([self.seed, int.from_bytes(name[:8], "big")])
        drawing: Drawing = LESIONS[exam.lesions[0].finding][1](rng, exam.spacing_mm)
        breast = find_breast(pixels, exam.spacing_mm)
        tissue = breast & ~find_pectoral(pixels, breast, exam.spacing_mm) if exam.view == "MLO" else breast
        inside = np.zeros_like(tissue)
        reach = drawing.reach
        inside[reach : -reach - 1, reach : -reach - 1] = tissue[reach : -reach - 1, reach : -reach - 1]
        places = np.argwhere(inside)
        if not len(places):
            raise DatasetError(f"{exam.exam_id}: no place in the tissue holds a lesion of {2 * reach + 1} px")
        row, column = places[rng.integers(len(places))]
        return Placed(drawing, int(row), int(column))
