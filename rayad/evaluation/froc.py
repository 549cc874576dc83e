"""Free-response ROC: lesions found against false alarms an image.

A peak is a local maximum of the scores inside the tissue (a plateau is one peak). A lesion, places of the
truth that touch, is found at a threshold if a peak inside it reaches the threshold; a peak outside all
lesions is a false alarm. Images that hold the kind and healthy images count alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from skimage.morphology import local_maxima

from rayad.arrays import GridMask
from rayad.evaluation.metrics import ANY, Scored, Undefined, usable
from rayad.scoring.regions import regions

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False alarms an image at which the sensitivity is given."""


@dataclass(frozen=True)
class Marks:
    """The marks of many images: the best peak of each lesion, and every false alarm."""

    scores: Float[np.ndarray, " n"]
    """-inf for a lesion without a peak."""
    lesion: Bool[np.ndarray, " n"]
    patient: Int[np.ndarray, " n"]
    """The mark's patient, an index into `patients`."""
    patients: tuple[str, ...]
    diseased: Bool[np.ndarray, " p"]
    images: Float[np.ndarray, " p"]
    """Images of each patient."""


def peaks(image: Scored) -> GridMask:
    """One place for each local maximum (of eight neighbors) of the scores inside the tissue."""
    lowest = image.scores[image.tissue].min() - 1
    padded = np.pad(np.where(image.tissue, image.scores, lowest), 1, constant_values=lowest)
    plateaus, _ = regions(np.asarray(local_maxima(padded, connectivity=2), dtype=bool)[1:-1, 1:-1])
    _, first = np.unique(plateaus, return_index=True)
    one_each = np.zeros(plateaus.size, dtype=bool)
    one_each[first] = True
    return one_each.reshape(plateaus.shape) & (plateaus > 0)


def marks(scored: Sequence[Scored], kind: str) -> Marks:
    """Collect the marks of all images that hold this kind and of all healthy images.

    Raises:
        Undefined: no image holds the kind at a known place in the tissue.
    """
    images = [image for image in scored if usable(image, kind) or image.diseased is False]
    diseased_patients = {image.patient_id for image in images if usable(image, kind)}
    if not diseased_patients:
        raise Undefined(f"no image holds a lesion of kind {kind!r} at a known place in the tissue")
    patients = tuple(sorted({image.patient_id for image in images}))
    image_marks = [_marks_of(image, kind) for image in images]
    index = np.array([patients.index(image.patient_id) for image in images])
    return Marks(
        scores=np.concatenate([scores for scores, _ in image_marks]),
        lesion=np.concatenate([lesion for _, lesion in image_marks]),
        patient=np.repeat(index, [scores.size for scores, _ in image_marks]),
        patients=patients,
        diseased=np.isin(patients, list(diseased_patients)),
        images=np.bincount(index, minlength=len(patients)).astype(float),
    )


def sensitivity(
    tp: Float[np.ndarray, "r t"],
    fp: Float[np.ndarray, "r t"],
    images: Float[np.ndarray, " r"],
    lesions: Float[np.ndarray, " r"],
) -> Float[np.ndarray, "r f"]:
    """Share of the lesions found at the lowest threshold that keeps each of `RATES`.

    Args:
        tp: lesions found at or above each threshold, the highest threshold first.
        fp: false alarms at or above each threshold.
        images: number of images.
        lesions: number of lesions, also those without a peak.
    """
    detected = np.concatenate([np.zeros_like(tp[:, :1]), tp], axis=1)
    allowed = np.stack([(fp <= rate * images[:, None]).sum(axis=1) for rate in RATES], axis=1)  # r f
    return np.take_along_axis(detected, allowed, axis=1) / lesions[:, None]


def _marks_of(image: Scored, kind: str) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    peak_places = peaks(image)
    lesions, count = regions(image.lesion(kind))
    best = np.full(count + 1, -np.inf)
    np.maximum.at(best, lesions[peak_places], image.scores[peak_places])
    alarms = image.scores[peak_places & ~image.lesion(ANY)]
    scores = np.concatenate([best[1:], alarms]).astype(np.float64)
    return scores, np.arange(scores.size) < count
