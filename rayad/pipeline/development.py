"""How well a detector tells lesions from healthy tissue in the half of the diseased patients that is for choices.

The other half, the test images, is for reported figures: a search never sees it. Where lesions have places, the figure
is the AUC over the places of the development images that hold a lesion, of all kinds. Where labels are of whole images,
it is the AUC of patients: those of development against the healthy ones of validation, which serve choices too.
"""

import tempfile
from dataclasses import dataclass, field

import numpy as np

from rayad import storage
from rayad.datasets.content import contents
from rayad.datasets.exam import Exam, Images, listed
from rayad.errors import DatasetError, OptionError
from rayad.evaluation import metrics
from rayad.evaluation.metrics import ANY, Scored
from rayad.fingerprint import fingerprint
from rayad.patches.corpus import Corpus
from rayad.pipeline.detectors import floor_detector, require_shares
from rayad.pipeline.score import in_split, score
from rayad.pool import Here
from rayad.scoring.detector import Detector

CHOICES = ("development", "validation")
"""Splits whose images serve choices; of the second the healthy ones are compared with."""


@dataclass(frozen=True)
class Development:
    """Labelled images that choices are made by, and what counts on them."""

    dataset: Images = field(repr=False)
    exams: tuple[Exam, ...] = field(repr=False)
    step_mm: float
    of_places: bool
    """Places count; else patients."""
    content: str
    """A hash of all images and labels."""

    @property
    def objective(self) -> str:
        """In words; lower is better."""
        counted = "the places of" if self.of_places else "the patients of"
        return f"1 - AUC of {counted} {len(self.exams):,} images that are for choices"

    def loss(self, detector: Detector, device: str = "cpu") -> float:
        """1 - AUC of the detector.

        Raises:
            DatasetError: an image cannot be scored, or a class is missing among those that can.
        """
        with tempfile.TemporaryDirectory(prefix="rayad-") as folder:
            url = storage.join(folder, "scores")
            images, _ = score(Here(device), [detector], self.dataset, self.exams, self.step_mm, url, "development")
        try:
            return 1 - self._auc([image.of(detector.name) for image in images])
        except metrics.Undefined as error:
            raise DatasetError(f"the images that are for choices have no AUC: {error}") from error

    def _auc(self, scored: list[Scored]) -> float:
        if self.of_places:
            places = metrics.pool(scored, ANY)
            return metrics.auroc(places.scores, places.anomalous)
        patients = list(metrics.patient_scores(scored, ANY).values())
        return metrics.auroc(np.array([value for value, _ in patients]), np.array([sick for _, sick in patients]))


def development_of(dataset: Images, corpus: Corpus, step_mm: float) -> Development:
    """The images of a data set that serve choices.

    Args:
        corpus: what detectors learn from; where it is of this data set, its patients must be divided alike.
        step_mm: distance of the scored places.

    Raises:
        DatasetError: there is no image with a lesion among them, or none to compare it with.
        OptionError: the corpus has such images mixed in, or was made of the same data set, divided otherwise.
    """
    if corpus.manifest["parameters"].get("mixed"):
        raise OptionError(
            f"{corpus.url}: images for choices are mixed into it, so they cannot judge what learns from it"
        )
    require_shares([floor_detector("development", "brightness", corpus)], dataset)
    exams, _ = listed(dataset)
    development, validation = (in_split(exams, split) for split in CHOICES)
    diseased = [exam for exam in development if exam.anomalous]
    if not diseased:
        raise DatasetError(f"no image of {len(exams)} is anomalous and in the development split")
    of_places = any(exam.lesions and all(lesion.located for lesion in exam.lesions) for exam in diseased)
    healthy = [exam for exam in validation if exam.anomalous is False]
    if not of_places and not healthy:
        raise DatasetError(f"no image of {len(exams)} is healthy and in the validation split")
    chosen = tuple(development if of_places else [*diseased, *healthy])
    return Development(dataset, chosen, step_mm, of_places, fingerprint(contents(dataset, chosen)))
