"""Images of a data set to score grids, an image a Ray task; what is scored is kept and not scored again."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayad import storage
from rayad.datasets.exam import Exam, Images, source_of
from rayad.errors import DatasetError, ImageError, StorageError
from rayad.evaluation.metrics import truth_on_grid
from rayad.imaging.spacing import resample_mask
from rayad.on_ray.cluster import tasks
from rayad.patches.sample import leaves_image
from rayad.scoring.detector import Detector


@dataclass(frozen=True)
class ScoredImage:
    """One image under several detectors that share their preprocessing."""

    exam: Exam
    rows: np.ndarray
    """Rows of the grid's places, px of the working resolution."""
    columns: np.ndarray
    tissue: np.ndarray
    """gh gw, where the scores are."""
    scores: dict[str, np.ndarray]
    """Detector -> gh gw, nan outside the tissue."""
    truth: dict[str, np.ndarray]
    """Kind of lesion -> gh gw, the places inside a lesion of this kind; none where the corpus gives no place."""
    step_mm: float
    reflected: int
    """Tissue places whose patch reaches over the image's border."""
    between: int
    """Lesions that hold no place's centre and took the nearest place."""


def score_exams(
    dataset: Images, exams: Sequence[Exam], detectors: Sequence[Detector], step: int, url: str, label: str
) -> tuple[list[ScoredImage], list[dict[str, str]]]:
    """Score the exams' tissue with every detector.

    Args:
        detectors: they must share their preprocessing; each image is prepared once.
        step: of the grid, px of the working resolution.
        url: folder that keeps an npz an image; what is there already is not scored again. The caller names
            it after the detectors and the step.

    Returns:
        The scored images, in the order of the exams, and a row (exam_id, url, reason) for each that failed.
    """
    results = tasks(score_exam, [(e,) for e in exams], len(exams), label, shared=(dataset, tuple(detectors), step, url))
    scored, failures = [], []
    for exam, reason in zip(exams, results, strict=True):
        if reason:
            failures.append({"exam_id": exam.exam_id, "url": exam.url, "reason": reason})
        else:
            scored.append(read(url, exam, detectors))
    return scored, failures


def score_exam(dataset: Images, detectors: Sequence[Detector], step: int, url: str, exam: Exam) -> str:
    """Score one image and keep the result; return why it failed, or an empty text."""
    where = _address(url, exam)
    if storage.exists(where):
        return ""
    try:
        arrays = _scored(dataset, detectors, step, exam)
    except (ImageError, StorageError, DatasetError) as error:
        return str(error)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    storage.write_bytes(where, buffer.getvalue())
    return ""


def _scored(dataset: Images, detectors: Sequence[Detector], step: int, exam: Exam) -> dict[str, Any]:
    prepared = detectors[0].preprocessing.prepare(source_of(dataset, exam))
    arrays: dict[str, Any] = {"step_mm": step * prepared.spacing_mm}
    for detector in detectors:
        heatmap = detector.heatmap(prepared, step)
        arrays |= {"rows": heatmap.rows, "columns": heatmap.columns, "tissue": heatmap.tissue}
        arrays[f"scores.{detector.name}"] = heatmap.scores
    rows, columns, tissue = arrays["rows"], arrays["columns"], arrays["tissue"]
    places = np.argwhere(tissue)
    arrays["reflected"] = leaves_image(prepared.stored.shape, rows[places[:, 0]], columns[places[:, 1]]).sum()
    arrays["between"] = 0
    for lesion in exam.lesions:
        truth, moved = np.zeros_like(tissue), False  # stays empty where the corpus gives no place
        if lesion.located:
            mask = resample_mask(dataset.lesion_mask(exam, lesion), prepared.stored.shape)
            truth, moved = truth_on_grid(mask, rows, columns)
        name = f"truth.{lesion.kind}"
        arrays[name] = arrays.get(name, np.zeros_like(tissue)) | truth
        arrays["between"] += int(moved)
    return arrays


def read(url: str, exam: Exam, detectors: Sequence[Detector]) -> ScoredImage:
    """The kept result of an image."""
    with np.load(io.BytesIO(storage.read_bytes(_address(url, exam))), allow_pickle=False) as arrays:
        return ScoredImage(
            exam=exam,
            rows=arrays["rows"],
            columns=arrays["columns"],
            tissue=arrays["tissue"],
            scores={d.name: arrays[f"scores.{d.name}"] for d in detectors},
            truth={n.removeprefix("truth."): arrays[n] for n in arrays.files if n.startswith("truth.")},
            step_mm=float(arrays["step_mm"]),
            reflected=int(arrays["reflected"]),
            between=int(arrays["between"]),
        )


def _address(url: str, exam: Exam) -> str:
    return storage.join(url, f"{exam.exam_id.replace('/', '_')}.npz")
