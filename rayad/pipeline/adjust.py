"""Detectors to detectors whose scores are adjusted for the place, which healthy training images teach."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rayad import bounds
from rayad.datasets.content import contents
from rayad.datasets.exam import Exam, Images, source_of
from rayad.errors import ImageError, reason
from rayad.fingerprint import fingerprint
from rayad.imaging.picture import Prepared, step_px
from rayad.imaging.position import position
from rayad.patches.sample import generator
from rayad.pipeline.detectors import finished, identity, require_names, require_shares
from rayad.pipeline.score import Preparation, exams_of, tolerate, unscored
from rayad.pool import Pool
from rayad.scoring import bundle
from rayad.scoring.adjustment import adjust
from rayad.scoring.combine import Aggregation
from rayad.scoring.detector import Detector, Heatmap

MOST_PLACES = 200_000
"""Healthy places that an adjustment is learned from, at most."""
FEWEST = 50
"""Places of an image that are taken, however many images there are."""

Places = dict[str, np.ndarray]
"""Of some places of one image: ``coordinates``, and the scores of each detector by its number."""


def adjust_detectors(
    pool: Pool,
    detectors: Sequence[Detector],
    smoothings: Sequence[Aggregation],
    dataset: Images,
    step_mm: float,
    urls: Sequence[str],
    max_failures: int = 0,
) -> list[Detector]:
    """Adjust detectors that share their preprocessing for the place, by the healthy training images of a data set.

    Args:
        smoothings: one a detector.
        step_mm: distance of the scored places.
        urls: where the adjusted detectors go; one that is there, made of the same, is not made again.
        max_failures: images that may fail to be scored; the next call tries them again.

    Returns:
        The same detectors, not calibrated: their scores are others.

    Raises:
        DatasetError: more images failed, or all healthy places score the same.
    """
    require_names(detectors)
    require_shares(detectors, dataset)
    exams = exams_of(dataset, "train", detectors)
    plain = [replace(detector, adjustment=None, calibration=None) for detector in detectors]
    learned_from = fingerprint([contents(dataset, exams), step_mm])
    requests = [_request(d, smoothing, learned_from) for d, smoothing in zip(plain, smoothings, strict=True)]
    made = {detector.name: finished(url, request) for detector, url, request in zip(plain, urls, requests, strict=True)}
    todo = [(d, s, u, r) for d, s, u, r in zip(plain, smoothings, urls, requests, strict=True) if not made[d.name]]
    if todo:
        scored, lost = _scored(pool, [detector for detector, *_ in todo], dataset, exams, step_mm, max_failures)
        for number, (detector, smoothing, url, request) in enumerate(todo):
            adjustment = adjust([(image[str(number)], image["coordinates"]) for image in scored], smoothing)
            origin = detector.provenance | {"made_of": fingerprint([request, lost]) if lost else request}
            made[detector.name] = adjusted = replace(detector, adjustment=adjustment, provenance=origin)
            bundle.save(adjusted, url)
    return [detector for detector in made.values() if detector]


def _request(detector: Detector, smoothing: Aggregation, learned_from: str) -> str:
    """Equal for adjustments that are equal."""
    return fingerprint(["adjusted", identity(detector), smoothing, learned_from])


def _scored(
    pool: Pool, detectors: Sequence[Detector], dataset: Images, exams: Sequence[Exam], step_mm: float, max_failures: int
) -> tuple[list[Places], list[str]]:
    """Places of the images that could be scored, and the names of the others; DatasetError where these are too many."""
    each, step = max(FEWEST, MOST_PLACES // len(exams)), step_px(detectors[0].preprocessing, step_mm)
    work, label = (dataset, tuple(detectors), step, each, pool.device), "healthy places"
    scored, failures = [], []
    for exam, outcome in zip(exams, pool.map(HealthyPlaces, exams, label, work, unscored), strict=True):
        if isinstance(outcome, str):
            failures.append({"exam_id": exam.exam_id, "reason": outcome})
        else:
            scored.append(outcome)
    tolerate(failures, len(exams), max_failures, label)
    return scored, [failure["exam_id"] for failure in failures]


@dataclass(frozen=True)
class HealthyPlaces:
    """Scores some places of images, by detectors that share their preprocessing."""

    dataset: Images
    detectors: tuple[Detector, ...]
    step: int
    """Of the grid, px of the working resolution."""
    each: int
    """Places of an image, at most."""
    device: str = "cpu"

    @staticmethod
    def prepare(
        dataset: Images, detectors: tuple[Detector, ...], step: int, each: int, device: str, exam: Exam
    ) -> Prepared:
        """The image as the call needs it."""
        return detectors[0].preprocessing.prepare(source_of(dataset, exam))

    def __call__(self, exam: Exam, prepared: Preparation | None = None) -> Places | str:
        """Scores and coordinates of places drawn at random, or why there are none."""
        try:
            image = (prepared and prepared()) or self.detectors[0].preprocessing.prepare(source_of(self.dataset, exam))
            return self._places(image, exam)
        except Exception as error:  # noqa: BLE001, whatever it is, the other images are scored
            return reason(error)

    def _places(self, image: Prepared, exam: Exam) -> Places:
        heatmaps = [self._heatmap(detector, image) for detector in self.detectors]
        first = heatmaps[0]
        chosen = _drawn(first.tissue, self.each, exam)
        coordinates = position(image, first.rows, first.columns)[chosen]
        return {"coordinates": coordinates} | {str(n): heatmap.scores[chosen] for n, heatmap in enumerate(heatmaps)}

    def _heatmap(self, detector: Detector, image: Prepared) -> Heatmap:
        with bounds.within(bounds.current().score_seconds, "score_seconds"):
            heatmap = detector.on(self.device).heatmap(image, self.step)
        scores = heatmap.scores[heatmap.tissue]
        if not np.isfinite(scores).all():
            raise ImageError(f"{detector.name} scores {scores[~np.isfinite(scores)][0]} at a place")
        return heatmap


def _drawn(tissue: np.ndarray, each: int, exam: Exam) -> tuple[np.ndarray, np.ndarray]:
    """Indices of places of the tissue, the same for an image each time."""
    places = np.argwhere(tissue)
    chosen = np.sort(generator(0, exam.exam_id).permutation(len(places))[:each])
    return places[chosen, 0], places[chosen, 1]
