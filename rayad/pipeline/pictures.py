"""The pictures of a report and its list of images, an image an item of the pool."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rayad.datasets.exam import Exam, Images, source_of
from rayad.density import queries
from rayad.density.spn import SPN
from rayad.evaluation import figures, strips
from rayad.evaluation.metrics import ANY, Scored, usable
from rayad.evaluation.shown import DetectorMap, Healthy, View
from rayad.evaluation.surface import distances
from rayad.evaluation.table import marked
from rayad.heatmaps.drawing import if_healthy
from rayad.heatmaps.findings import MarkedRegion, findings
from rayad.imaging.picture import Preprocessing, step_px
from rayad.imaging.spacing import resample_mask
from rayad.patches.corpus import ALL_LANES, Corpus
from rayad.pipeline.score import ScoredImage
from rayad.pipeline.train import pixels, reader
from rayad.pool import Pool
from rayad.scoring import counterfactual
from rayad.scoring.calibrate import Calibration, image_score
from rayad.scoring.detector import Detector
from rayad.scoring.regions import ALARM
from rayad.scoring.scores import LatentScore, ModelScore, scores_of
from rayad.tensors import Patches

PANEL_DETECTORS = 6
"""Detectors in the panel, the first of the table: more are too small to see."""
STRIP = 8
"""Patches of a strip."""
PANEL_IMAGES = 2
"""Images of each kind of lesion in the panel: the first by name."""


Overview = tuple[Callable[..., bytes], tuple[Any, ...]]
"""What draws a picture of several images, and of what."""


@dataclass(frozen=True)
class Shown:
    """What a report shows of its images."""

    main: Detector
    """Whose heatmaps and findings the list of images has."""
    detectors: tuple[Detector, ...]
    calibrations: dict[str, Calibration]
    dataset: Images
    scored: dict[str, list[ScoredImage]]
    """Detector -> its scored images."""
    on_grid: dict[str, list[Scored]]
    """The same as metrics take them."""
    kinds: tuple[str, ...]

    @property
    def images(self) -> list[ScoredImage]:
        return self.scored[self.main.name]

    @property
    def calibration(self) -> Calibration:
        return self.calibrations[self.main.name]

    @cached_property
    def found(self) -> list[tuple[list[MarkedRegion], int]]:
        """Of each image the findings that are listed, and how many there are."""
        scores = [image.scores[self.main.name] for image in self.images]
        quantiles = [self.calibration.healthy_quantile(grid) for grid in scores]
        steps = [image.step_mm for image in self.images]
        return [
            findings(grid, q, ALARM, step, calibration=self.calibration)
            for grid, q, step in zip(scores, quantiles, steps, strict=True)
        ]

    def drawn(self, pool: Pool) -> dict[str, bytes]:
        """Name -> PNG: the panel, the distributions of scores, a thumbnail an image with its findings numbered."""
        jobs = [
            (image, mapped(self.calibration, image.scores[self.main.name]), listed)
            for image, (listed, _) in zip(self.images, self.found, strict=True)
        ]
        thumbnail_pngs = list(pool.map(draw, jobs, "pictures"))
        thumbnails = {f"image-{i.exam.exam_id}": png for i, png in zip(self.images, thumbnail_pngs, strict=True)}
        classes = {d.name: _classes(self.on_grid[d.name], self.kinds) for d in self.detectors[: 2 * PANEL_DETECTORS]}
        panel = self._panel(pool)
        overviews: dict[str, Overview] = {"panel": (figures.panel, panel)} if panel else {}
        overviews["distributions"] = figures.distributions, (classes,)
        pngs = pool.map(_overview, list(overviews.values()), "overviews")
        return dict(zip(overviews, pngs, strict=True)) | thumbnails

    @cached_property
    def scores(self) -> dict[str, dict[str, list[float]]]:
        """Detector -> score and p-values of each image; see `evaluation.results.Results.scores`."""
        rows: dict[str, dict[str, list[float]]] = {}
        for name, images in self.scored.items():
            calibration, highest = self.calibrations[name], defaultdict[str, float](lambda: -np.inf)
            scores = [image_score(image.scores[name], calibration.top) for image in images]
            for image, score in zip(images, scores, strict=True):
                highest[image.exam.patient_id] = max(highest[image.exam.patient_id], score)
            rows[name] = {
                "score": scores,
                "image_p": [calibration.image_p(score) for score in scores],
                "exam_p": [calibration.exam_p(highest[image.exam.patient_id]) for image in images],
            }
        return rows

    def listed(self) -> list[dict[str, Any]]:
        """A row an image: whose it is, what is known of it, its p-values and its findings."""
        own, rows = self.scores[self.main.name], []
        scored = zip(self.images, own["score"], own["image_p"], own["exam_p"], self.found, strict=True)
        for image, score, image_p, exam_p, (listed_findings, number) in scored:
            exam, step = image.exam, step_px(self.main.preprocessing, image.step_mm)
            rows.append(
                {
                    "exam_id": exam.exam_id,
                    "patient_id": exam.patient_id,
                    "diseased": exam.anomalous,
                    "lesions": sorted({lesion.kind for lesion in exam.lesions}),
                    "thumbnail": f"image-{exam.exam_id}",
                    "shape": list(image.shape),
                    "findings": [asdict(finding) | circle(image, finding, step) for finding in listed_findings],
                    "more_findings": number - len(listed_findings),
                    "p": {self.main.name: {"image": image_p, "exam": exam_p}},
                    **({"verdict": self.main.rule.verdict(score, self.calibration)} if self.main.rule else {}),
                }
            )
        return rows

    def _panel(self, pool: Pool) -> tuple[Any, ...] | None:
        """A few images with lesions under several detectors, as `figures.panel` takes them; None where no lesion has a
        place."""
        chosen: dict[int, str] = {}
        for kind in self.kinds:
            with_kind = [
                i for i, image in enumerate(self.on_grid[self.main.name]) if usable(image, kind) and i not in chosen
            ]
            chosen |= dict.fromkeys(with_kind[:PANEL_IMAGES], kind)
        if not chosen:
            return None
        maps = {
            d.name: [_compared(self.calibrations[d.name], self.on_grid[d.name][i], kind) for i, kind in chosen.items()]
            for d in _side_by_side(self.main, self.detectors)
        }
        images = [self.images[i] for i in chosen]
        views = list(pool.map(view, images, "panel", (self.dataset, self.main.preprocessing)))
        healthy = _if_healthy(pool, self.main, self.dataset, images)
        return views, maps, healthy


def _side_by_side(main: Detector, detectors: Sequence[Detector]) -> list[Detector]:
    """Some that see the same picture of an image as this one of them, those that learned if there are any."""
    same_picture = [d for d in detectors if d.preprocessing == main.preprocessing]
    return ([d for d in same_picture if d.model] or same_picture)[:PANEL_DETECTORS]


def strips_of(detectors: Sequence[Detector], corpora: Mapping[str, Corpus]) -> dict[str, tuple[bytes, str]]:
    """Name -> PNG and caption: what each model makes of healthy patches, and what each circuit draws.

    Args:
        corpora: content -> the corpora that detectors learned from; those of another have no strip.
    """
    shown: dict[str, tuple[bytes, str]] = {}
    for detector in detectors:
        corpus = corpora.get(detector.origin("corpus"))
        if corpus and (rows := _rows(detector, corpus)):
            picture, caption = strips.png(strips.strip(rows.values())), "; ".join(rows)
            shown[f"strip-{detector.name}"] = picture, f"{detector.name}, from above: {caption}."
    return shown


def _rows(detector: Detector, corpus: Corpus) -> dict[str, Patches]:
    """What a row of a strip shows -> its patches; nothing of a detector that draws nothing, or asks a model for another
    score than its first: of each model there is one strip."""
    score = detector.score
    if isinstance(score, ModelScore):
        if score.name != scores_of(score.model)[0] or not hasattr(score.model.module, "reconstruct"):
            return {}
        shard, count = corpus.shards("validation")[0]
        apart = np.linspace(0, count - 1, min(STRIP, count)).astype(int)  # neighbours are of one image
        return strips.rows(score.model.module, pixels(reader(corpus, score.model.module)(shard, ALL_LANES)[apart]))
    if isinstance(score, LatentScore) and isinstance(score.density.module, SPN) and not score.context:
        draws = strips.decoded(score.model.module, queries.sample(score.density.module, STRIP, seed=0))
        return {"latents that the circuit draws, decoded": draws} if draws is not None else {}
    return {}


def draw(item: tuple[ScoredImage, DetectorMap, Sequence[MarkedRegion]]) -> bytes:
    """The thumbnail of an image with the map and the findings."""
    image, detector_map, listed = item
    small = image.small_view
    marks = [(finding.row_mm / small.spacing_mm, finding.col_mm / small.spacing_mm) for finding in listed]
    return figures.thumbnail(small, detector_map, marks=marks)


def circle(image: ScoredImage, finding: MarkedRegion, step: int) -> dict[str, float]:
    """The circle of a finding's area around its highest place: `row`, `col` and `radius`, px of the image as it came.

    Its radius is at least the distance of neighbouring places.

    Args:
        step: of the grid, px of the working resolution.
    """
    place = int(finding.row_mm / image.step_mm), int(finding.col_mm / image.step_mm)
    centre = image.rows[place[0]], image.columns[place[1]]
    row, col = ((px + 0.5) * scale - 0.5 for px, scale in zip(centre, image.scale, strict=True))
    area = finding.size_mm2 / image.step_mm**2 * step**2 * math.prod(image.scale)
    radius = max(math.sqrt(area / math.pi), step * max(image.scale))
    return {"row": float(row), "col": float(col), "radius": radius}


def _overview(overview: Overview) -> bytes:
    draw_overview, arguments = overview
    return draw_overview(*arguments)


def view(dataset: Images, preprocessing: Preprocessing, image: ScoredImage) -> View:
    """The image as figures take it."""
    exam = image.exam
    prepared = preprocessing.prepare(source_of(dataset, exam))
    truth = np.zeros(prepared.stored.shape, bool)
    for lesion in exam.lesions:
        if lesion.located:
            truth |= resample_mask(dataset.lesion_mask(exam, lesion), prepared.stored.shape)
    return View(exam.exam_id, prepared.shown, prepared.spacing_mm, image.rows, image.columns, truth)


@dataclass(frozen=True)
class Explainer:
    """Says what images would look like if they were healthy, by a detector that it keeps."""

    dataset: Images
    detector: Detector
    device: str = "cpu"

    def __call__(self, exam: Exam) -> Healthy:
        prepared = self.detector.preprocessing.prepare(source_of(self.dataset, exam))
        return if_healthy(self.detector.on(self.device), prepared)


def mapped(calibration: Calibration, scores: np.ndarray) -> DetectorMap:
    """Scores as healthy quantiles, and the places above the alarm quantile."""
    quantile = calibration.healthy_quantile(scores)
    return DetectorMap(quantile, np.nan_to_num(quantile) > ALARM)


def _compared(calibration: Calibration, image: Scored, kind: str) -> DetectorMap:
    """The map of an image with a lesion, and the mask whose distance to the lesion the table has."""
    mask = marked(image, kind)
    distance = distances(mask, image.lesion(kind)).hausdorff
    return DetectorMap(calibration.healthy_quantile(image.scores), mask, distance)


def _if_healthy(pool: Pool, detector: Detector, dataset: Images, images: Sequence[ScoredImage]) -> list[Healthy]:
    """The healthy counterfactual of each image; none for a detector that has none."""
    if counterfactual.lacking(detector):
        return []
    return list(
        pool.map(Explainer, [image.exam for image in images], "counterfactuals", (dataset, detector, pool.device))
    )


def _classes(scored: Sequence[Scored], kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """Scores of places outside of lesions and of places inside each kind, or of its images without places."""
    all_placed = [i for i in scored if i.diseased is False or i.placed(ANY)]
    scores_by_class = {"healthy": [i.scores[i.tissue & ~i.lesion(ANY)] for i in all_placed]}
    for kind in kinds:
        placed = [i.scores[i.lesion(kind) & i.tissue] for i in scored if usable(i, kind)]
        scores_by_class[kind] = placed or [
            i.scores[i.tissue] for i in scored if i.holds(kind)
        ]  # a corpus may give no places
    return {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in scores_by_class.items()}
