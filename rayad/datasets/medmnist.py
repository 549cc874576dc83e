"""MedMNIST: an npz of small images in classes.

Yang et al., "MedMNIST v2", Scientific Data 10 (2023), 41. The arrays ``train_images``, ``train_labels`` and so on of
train, val and test are taken together and split anew, by patient as everywhere; the set names no patients, so equal
images count as one and never stand in two splits.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np

from rayad import bounded, storage
from rayad.arrays import Image, Mask
from rayad.datasets.exam import Exam, Lesion, in_order
from rayad.errors import DatasetError, FormatError, OptionError
from rayad.options import Within

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Dataset:
    """A data set of MedMNIST (28 to 224 px, grey or colours): the file or URL of its npz."""

    source: str = ""
    """The set's npz file or its URL."""
    healthy: Annotated[tuple[int, ...], Within(0, 1_000_000)] = (0,)
    """Labels of healthy images; all others hold a finding without a place."""
    labelled: Annotated[tuple[int, ...], Within(0, 1_000_000)] = ()
    """Labels that take part; empty: all."""

    def exams(self) -> list[Exam]:
        """An exam an image.

        Raises:
            DatasetError: the file is no npz of MedMNIST, or has several labels an image.
            OptionError: no image has a label of a healthy class.
        """
        exams = []
        for part, (images, labels) in _parts(self.source).items():
            for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                if not self.labelled or label in self.labelled:
                    exams.append(self._exam(f"{part}-{number:06d}", image, label))
        if not any(exam.anomalous is False for exam in exams):
            raise OptionError(f"{self.source}: no image has a label of healthy={self.healthy}")
        return in_order(exams)

    def pixels(self, exam: Exam) -> Image:
        """The image, grey or in colour."""
        part, number = exam.exam_id.split("-")
        image: Image = _parts(self.source)[part][0][int(number)].astype(np.float32) / 255
        return image

    def lesion_mask(self, exam: Exam, lesion: Lesion) -> Mask:
        """DatasetError: there are no places."""
        raise DatasetError(f"{exam.exam_id}: no mask of this {lesion.kind}, MedMNIST has labels of whole images")

    def _exam(self, name: str, image: np.ndarray, label: int) -> Exam:
        healthy = label in self.healthy
        return Exam(
            exam_id=name,
            patient_id=hashlib.sha256(image.tobytes()).hexdigest()[:16],
            url=f"{self.source}#{name}",
            anomalous=not healthy,
            view="",
            laterality="",
            density="",
            spacing_mm=1.0,
            lesions=() if healthy else (Lesion("finding", str(label)),),
        )


@lru_cache(maxsize=1)
def _parts(url: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Part of the set -> images (n, h, w) or (n, h, w, 3), uint8, and labels (n,)."""
    expected = (
        f"{url}: an npz of MedMNIST expected, with train_images (n, h, w) or (n, h, w, 3), train_labels (n, 1), ..."
    )
    try:
        arrays = bounded.load_npz(storage.read_bytes(url), url)
        images_and_labels = {part: (arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in PARTS}
    except (FormatError, KeyError) as error:
        raise DatasetError(f"{expected}: {error if isinstance(error, FormatError) else type(error).__name__}") from None
    for images, labels in images_and_labels.values():
        is_image_stack = (
            images.dtype == np.uint8 and images.ndim in (3, 4) and (images.ndim == 3 or images.shape[3] == 3)
        )
        if not is_image_stack or labels.shape != (len(images), 1) or not np.issubdtype(labels.dtype, np.integer):
            raise DatasetError(expected)
    return {part: (images, labels[:, 0]) for part, (images, labels) in images_and_labels.items()}
