"""Figures of a test set of any size: workers count places in fixed bins, the driver adds the counts.

No score leaves its worker, so memory does not grow with the images. Figures over places come out (AUROC, average
precision, best Dice), without intervals; for those, and for figures of single images and exams, see `evaluate`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayad import provenance, storage
from rayad.datasets.exam import Exam, Images
from rayad.evaluation import metrics, streaming
from rayad.evaluation.streaming import Histogram
from rayad.imaging.picture import Prepared, Preprocessing, step_px
from rayad.pipeline.detectors import require_names, require_shares, require_unseen
from rayad.pipeline.evaluate import Evaluation, calibration_of
from rayad.pipeline.score import KeptScores, Preparation, ScoreExam, exams_to_judge, score_exam, tolerate, unscored
from rayad.pool import Pool
from rayad.scoring.detector import Detector

Counts = dict[tuple[str, str], Histogram]
"""Detector and kind of lesion -> counts of places; only of images that hold the kind."""
FIGURES = {"pixel_auc": Histogram.auroc, "pixel_ap": Histogram.average_precision, "best_dice": Histogram.best_dice}


def streamed(
    pool: Pool, detectors: Sequence[Detector], dataset: Images, options: Evaluation, url: str
) -> list[dict[str, Any]]:
    """A row for each detector and kind of lesion, also written to ``streamed.json`` at the URL.

    Raises:
        OptionError: a detector that is not calibrated.
        DatasetError: more images failed than allowed, or the split is empty.
    """
    require_names(detectors)
    require_unseen(detectors, options.split)
    require_shares(detectors, dataset)
    for detector in detectors:
        detector.step(options.step_mm)
    exams, left_out = exams_to_judge(dataset, options.split, detectors)
    kinds = options.kinds or tuple(sorted({lesion.kind for e in exams for lesion in e.lesions}))
    groups: dict[Preprocessing, list[Detector]] = defaultdict(list)
    for detector in detectors:
        groups[detector.preprocessing].append(detector)
    counts: Counts = {}
    images: dict[tuple[str, str], int] = defaultdict(int)
    failures: dict[str, str] = {}
    for preprocessing, group in groups.items():
        step = step_px(preprocessing, options.step_mm)
        keep = KeptScores.of(dataset, exams, storage.join(url, "scores"), group, step)
        edges = {d.name: streaming.edges_of(calibration_of(d).levels, calibration_of(d).quantiles) for d in group}
        label = f"{options.split} images, {', '.join(d.name for d in group)}"
        results = pool.map(PlaceCounter, exams, label, (dataset, keep, kinds, edges, pool.device), unscored)
        for exam, outcome in zip(exams, results, strict=True):
            pool.count("scored_images", 1, result="failed" if isinstance(outcome, str) else "done")
            if isinstance(outcome, str):
                failures[exam.exam_id] = outcome
                continue
            for key, histogram in outcome.items():
                images[key] += 1
                counts[key] = counts[key] + histogram if key in counts else histogram
    failed = [{"exam_id": exam_id, "reason": reason} for exam_id, reason in failures.items()]
    tolerate(failed, len(exams), options.max_failures, f"{options.split} images")
    rows = [_row(d.name, kind, images[d.name, kind], counts.get((d.name, kind))) for d in detectors for kind in kinds]
    content = {"rows": rows, "failures": failures, "split": options.split, "step_mm": options.step_mm}
    content |= {"left_out": left_out} if left_out else {}
    storage.write_json(storage.join(url, "streamed.json"), content | {"provenance": provenance.versions()})
    return rows


@dataclass(frozen=True)
class PlaceCounter:
    """Counts the places of images under some detectors, which it keeps."""

    dataset: Images
    keep: KeptScores
    kinds: Sequence[str]
    edges: Mapping[str, np.ndarray]
    device: str = "cpu"

    @staticmethod
    def prepare(
        dataset: Images,
        keep: KeptScores,
        kinds: Sequence[str],
        edges: Mapping[str, np.ndarray],
        device: str,
        exam: Exam,
    ) -> Prepared | None:
        """As `ScoreExam.prepare`."""
        return ScoreExam.prepare(dataset, keep, device, exam)

    def __call__(self, exam: Exam, prepared: Preparation | None = None) -> Counts | str:
        self.keep.on(self.device)
        return count_exam(self.dataset, self.keep, self.kinds, self.edges, exam, prepared)


def count_exam(
    dataset: Images,
    keep: KeptScores,
    kinds: Sequence[str],
    edges: Mapping[str, np.ndarray],
    exam: Exam,
    prepared: Preparation | None = None,
) -> Counts | str:
    """The counts of one image, or why there are none; an image counts for the kinds that it holds."""
    reason = score_exam(dataset, keep, exam, prepared)
    if reason:
        return reason
    image, counts = keep.read(exam), {}
    for name, bins in edges.items():
        scored = image.of(name)
        for kind in kinds:
            if metrics.usable(scored, kind):
                places = scored.counted(kind)
                counts[name, kind] = streaming.count(scored.scores[places], scored.lesion(kind)[places], bins)
    return counts


def _row(detector: str, kind: str, images: int, counts: Histogram | None) -> dict[str, Any]:
    row: dict[str, Any] = {"detector": detector, "lesion": kind, "images": images}
    if counts is None:
        reason = f"no image holds a lesion of kind {kind!r} at a known place in the tissue"
        return row | {name: {"value": None, "reason": reason} for name in FIGURES}
    row |= {"anomalous_places": int(counts.anomalous.sum()), "normal_places": int(counts.normal.sum())}
    for name, figure in FIGURES.items():
        try:
            row[name] = {"value": figure(counts)}
        except metrics.Undefined as reason:
            row[name] = {"value": None, "reason": str(reason)}
    return row
