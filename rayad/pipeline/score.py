"""Images of a data set to score grids, an image an item of the pool; what is scored is kept, not scored again."""

import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rayad import bounded, bounds, storage
from rayad.datasets.content import contents, file_name
from rayad.datasets.exam import Exam, Images, listed, source_of
from rayad.datasets.sides import with_other_sides
from rayad.datasets.splits import SEVERAL, assign
from rayad.errors import DatasetError, reason
from rayad.evaluation.metrics import Scored, truth_on_grid
from rayad.evaluation.shown import View, reduced
from rayad.fingerprint import fingerprint
from rayad.imaging.picture import Prepared, described, step_px
from rayad.imaging.plausibility import Doubt
from rayad.imaging.spacing import resample_mask
from rayad.patches.sample import leaves_image
from rayad.pipeline.detectors import identity, not_taught_by
from rayad.pool import Pool
from rayad.scoring.dense import places
from rayad.scoring.detector import Detector, Heatmap
from rayad.terminal import say

Preparation = Callable[[], Prepared | None]
"""Returns an image as a detector needs it, or raises why it cannot be had."""
PLACES = 5
"""Version of what is kept of an image's places."""


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
    """Kind of lesion -> gh gw, the places inside a lesion of this kind; none where one of them has no known place."""
    seconds: dict[str, float]
    """Detector -> what scoring the prepared image took."""
    step_mm: float
    reflected: int
    """Tissue places whose patch reaches over the image's border."""
    between: int
    """Lesions that hold no place's centre and took the nearest place."""
    outside: int = 0
    """Lesions of which no place lies in the tissue."""
    doubts: tuple[Doubt, ...] = ()
    """What may be wrong with the image."""
    places_url: str = ""
    """Where the places are kept, and a small picture of the image."""
    shape: tuple[int, int] = (0, 0)
    """Rows and columns of the image as it came."""
    scale: tuple[float, float] = (1.0, 1.0)
    """px of the image as it came for one of the working resolution, down and across."""

    @property
    def small_view(self) -> View:
        """The small picture that is kept, as figures take it."""
        kept = _load(self.places_url)
        scales = np.array(kept["lesions"].shape) / kept["shape"]
        rows, columns = (
            (centres + 0.5) * scale - 0.5 for centres, scale in zip((self.rows, self.columns), scales, strict=True)
        )
        spacing_mm = float(kept["spacing_mm"] / scales[0])
        picture = kept["picture"].astype(np.float32) / 255
        return View(self.exam.exam_id, picture, spacing_mm, rows, columns, kept["lesions"])

    def of(self, detector: str, group: str = "") -> Scored:
        """The image under one detector, as figures are computed of it; a group of images to which it belongs."""
        exam, scores = self.exam, self.scores[detector]
        return Scored(
            exam.exam_id, exam.patient_id, exam.anomalous, scores, self.tissue, self.truth, self.step_mm, group
        )


def exams_of(dataset: Images, split: str, detectors: Sequence[Detector] = ()) -> list[Exam]:
    """The exams of a split, of `EVERY` or `LABEL_FREE`; DatasetError if there are none.

    Args:
        detectors: that will see them: where one looks at the other breast, each exam has it.
    """
    exams, _ = listed(dataset)
    chosen = seen_by(detectors, in_split(exams, split), exams)
    if not chosen:
        raise DatasetError(f"no image of {len(exams)} is in the {split} split")
    return chosen


def exams_to_judge(dataset: Images, split: str, detectors: Sequence[Detector]) -> tuple[list[Exam], str]:
    """The exams of a split but for patients whose labels taught a detector, and a sentence that counts these, which
    stands on the terminal; empty: there are none.

    Raises:
        DatasetError: there is no exam in the split.
        OptionError: all of its patients taught.
    """
    exams, left_out = not_taught_by(detectors, exams_of(dataset, split, detectors))
    if left_out:
        say(f"{split}: {left_out}", sys.stderr)
    return exams, left_out


def seen_by(detectors: Sequence[Detector], chosen: Sequence[Exam], exams: Sequence[Exam]) -> list[Exam]:
    """Some of a data set's exams, each with that of the other breast where a detector looks at it."""
    return with_other_sides(chosen, exams) if any(d.both_sides for d in detectors) else list(chosen)


def in_split(exams: Sequence[Exam], split: str) -> list[Exam]:
    """Those of a split, of `EVERY` or `LABEL_FREE`."""
    assigned, splits = assign(exams), SEVERAL.get(split, (split,))
    return [exam for exam in exams if assigned[exam.exam_id] in splits]


def score(
    pool: Pool,
    detectors: Sequence[Detector],
    dataset: Images,
    exams: Sequence[Exam],
    step_mm: float,
    url: str,
    label: str,
    max_failures: int = 0,
) -> tuple[list[ScoredImage], list[dict[str, str]]]:
    """Score images, and refuse to go on with too few of them.

    Returns:
        As `score_exams`; a line on the terminal says how many failed.

    Raises:
        DatasetError: more images failed than ``max_failures``; names the first and its reason.
    """
    step = step_px(detectors[0].preprocessing, step_mm)
    scored, failures = score_exams(pool, dataset, exams, detectors, step, url, label)
    tolerate(failures, len(exams), max_failures, label)
    return scored, failures


def tolerate(failures: Sequence[dict[str, str]], images: int, max_failures: int, label: str) -> None:
    """Say on the terminal how many of the images failed.

    Args:
        failures: a row (exam_id, reason) for each.

    Raises:
        DatasetError: more than ``max_failures``; names the first and its reason.
    """
    if not failures:
        return
    sentence = f"{len(failures)} of {images} images could not be scored"
    first = f"{failures[0]['exam_id']}: {failures[0]['reason']}"
    if len(failures) > max_failures:
        raise DatasetError(f"{sentence}, and max_failures is {max_failures}: {first}")
    say(f"{label}: {sentence}, such as {first}", sys.stderr)


def score_exams(
    pool: Pool, dataset: Images, exams: Sequence[Exam], detectors: Sequence[Detector], step: int, url: str, label: str
) -> tuple[list[ScoredImage], list[dict[str, str]]]:
    """Score the exams' tissue with every detector.

    Args:
        detectors: they must share their preprocessing; each image is prepared once.
        step: of the grid, px of the working resolution.
        url: folder that keeps an npz an image and detector, and one an image with the places; what is there
            already is not scored again.

    Returns:
        The scored images, in the order of the exams, and a row (exam_id, url, reason) for each that failed.
    """
    keep = KeptScores.of(dataset, exams, url, detectors, step)
    scored, failures = [], []
    outcomes = pool.map(ScoreExam, exams, label, (dataset, keep, pool.device), unscored)
    for exam, outcome in zip(exams, outcomes, strict=True):
        pool.count("scored_images", 1, result="done" if isinstance(outcome, ScoredImage) else "failed")
        if isinstance(outcome, ScoredImage):
            scored.append(outcome)
        else:
            failures.append({"exam_id": exam.exam_id, "url": exam.url, "reason": outcome})
    return scored, failures


def unscored(why: str, exam: Exam) -> str:
    """The result of an image whose process ended."""
    return f"{exam.url}: {why}"


@dataclass(frozen=True)
class KeptScores:
    """Where the scores of some detectors are kept."""

    url: str
    detectors: tuple[Detector, ...]
    step: int
    contents: dict[str, str] = field(repr=False)
    """exam_id -> what it is made of; its scores are those of these contents alone."""

    @staticmethod
    def of(dataset: Images, exams: Sequence[Exam], url: str, detectors: Sequence[Detector], step: int) -> "KeptScores":
        """For these exams as they are now; says how many are others than those that were scored."""
        keep = KeptScores(url, tuple(detectors), step, contents(dataset, exams))
        if changed := keep.changed(exams):
            say(f"{changed} of {len(exams)} images or their labels changed: they are scored anew", sys.stderr)
        return keep

    def on(self, device: str) -> None:
        """Put the detectors on a device, "cuda" or "cpu"."""
        for detector in self.detectors:
            detector.on(device)

    def changed(self, exams: Sequence[Exam]) -> int:
        """Number of exams whose kept scores are stale: their image or labels changed since they were scored."""
        folder = self.places(exams[0]).rpartition("/")[0] if exams else ""
        files = storage.listing(folder, (".npz",)) if folder and storage.exists(folder) else []
        stored_files = {file.rpartition("/")[2] for file in files}
        stored_names = {name.rpartition("-")[0] for name in stored_files}
        return sum(file_name(exam.exam_id) in stored_names and self._file(exam) not in stored_files for exam in exams)

    @property
    def patch_px(self) -> int:
        """Side of the largest patches that are scored, px."""
        return max(detector.patch_px for detector in self.detectors)

    def places(self, exam: Exam) -> str:
        """URL of the image's places, which follow from the preprocessing, the step and the side of patches."""
        made_of = fingerprint([PLACES, described(self.detectors[0].preprocessing), self.step, self.patch_px])
        return storage.join(self.url, f"places-{made_of}", self._file(exam))

    def scores(self, detector: Detector, exam: Exam) -> str:
        """URL of the image's scores by one detector."""
        made_of = fingerprint([identity(detector), self.step])
        return storage.join(self.url, f"{detector.name}-{made_of}", self._file(exam))

    def _file(self, exam: Exam) -> str:
        return f"{file_name(exam.exam_id)}-{self.contents[exam.exam_id]}.npz"

    def known(self, detector: Detector, exam: Exam) -> dict[str, tuple[Heatmap, float]]:
        """What is kept of this image by the detector's members: their heatmaps, and the seconds that these took."""
        heatmaps = {}
        step_mm = self.step * detector.preprocessing.spacing_mm
        for member in detector.members:
            member_scores = replace(self, detectors=(member,), step=step_px(member.preprocessing, step_mm))
            if storage.exists(member_scores.places(exam)) and not member_scores.missing(exam):
                image = member_scores.read(exam)
                heatmap = Heatmap(image.scores[member.name], image.rows, image.columns, image.tissue)
                heatmaps[member.name] = heatmap, image.seconds[member.name]
        return heatmaps

    def missing(self, exam: Exam) -> list[Detector]:
        """The detectors that the image was not scored with."""
        return [d for d in self.detectors if not storage.exists(self.scores(d, exam))]

    def read(self, exam: Exam) -> ScoredImage:
        """The kept result of an image."""
        places = _load(self.places(exam))
        loaded = {d.name: _load(self.scores(d, exam)) for d in self.detectors}
        (height, width), (down, across) = places["source_shape"], places["source_shape"] / places["shape"]
        return ScoredImage(
            exam=exam,
            rows=places["rows"],
            columns=places["columns"],
            tissue=places["tissue"],
            scores={name: arrays["scores"] for name, arrays in loaded.items()},
            seconds={name: float(arrays["seconds"]) for name, arrays in loaded.items()},
            truth={n.removeprefix("truth."): places[n] for n in places if n.startswith("truth.")},
            step_mm=float(places["step_mm"]),
            reflected=int(places["reflected"]),
            between=int(places["between"]),
            outside=int(places["outside"]),
            doubts=tuple(Doubt(*doubt) for doubt in json.loads(places["doubts"].tobytes())),
            places_url=self.places(exam),
            shape=(int(height), int(width)),
            scale=(float(down), float(across)),
        )


@dataclass(frozen=True)
class ScoreExam:
    """Scores images with some detectors, which it keeps."""

    dataset: Images
    keep: KeptScores
    device: str = "cpu"

    @staticmethod
    def prepare(dataset: Images, keep: KeptScores, device: str, exam: Exam) -> Prepared | None:
        """The image as the call needs it; None where it is scored already."""
        is_scored = not keep.missing(exam) and storage.exists(keep.places(exam))
        return None if is_scored else keep.detectors[0].preprocessing.prepare(source_of(dataset, exam))

    def __call__(self, exam: Exam, prepared: Preparation | None = None) -> "ScoredImage | str":
        """The image's scores, or why there are none."""
        self.keep.on(self.device)
        return score_exam(self.dataset, self.keep, exam, prepared) or self.keep.read(exam)


def score_exam(dataset: Images, keep: KeptScores, exam: Exam, prepared: Preparation | None = None) -> str:
    """Score one image with the detectors that it was not scored with; return why it failed, or an empty text.

    Args:
        prepared: gives the image where it is prepared elsewhere.
    """
    missing = keep.missing(exam)
    if not missing and storage.exists(keep.places(exam)):
        return ""
    try:
        image = (prepared and prepared()) or keep.detectors[0].preprocessing.prepare(source_of(dataset, exam))
        if not storage.exists(keep.places(exam)):
            _save(keep.places(exam), _places(dataset, exam, image, keep))
        _score(image, keep, exam, missing)
    except Exception as error:  # noqa: BLE001, whatever it is, the other images are scored
        return reason(error)
    return ""


def _score(prepared: Prepared, keep: KeptScores, exam: Exam, detectors: Sequence[Detector]) -> None:
    """Score the image with each detector; what members have found, those that combine them need not find again."""
    for detector in detectors:
        member_heatmaps = keep.known(detector, exam)
        began = time.perf_counter()
        with bounds.within(bounds.current().score_seconds, "score_seconds"):
            result = detector.heatmap(
                prepared, keep.step, {name: heatmap for name, (heatmap, _) in member_heatmaps.items()}
            )
        seconds = time.perf_counter() - began + sum(member_seconds for _, member_seconds in member_heatmaps.values())
        _save(keep.scores(detector, exam), {"scores": result.scores, "seconds": seconds})


def _places(dataset: Images, exam: Exam, prepared: Prepared, keep: KeptScores) -> dict[str, Any]:
    """The image's grid, its tissue and its truth."""
    step, (h, w) = keep.step, prepared.stored.shape
    rows, columns = places(h, w, step)
    tissue = prepared.tissue[np.ix_(rows, columns)]
    tissue_places = np.argwhere(tissue)
    arrays: dict[str, Any] = {"rows": rows, "columns": columns, "tissue": tissue, "step_mm": step * prepared.spacing_mm}
    arrays["reflected"] = leaves_image(
        prepared.stored.shape, rows[tissue_places[:, 0]], columns[tissue_places[:, 1]], keep.patch_px
    ).sum()
    doubts = json.dumps([[doubt.kind, doubt.sentence] for doubt in prepared.doubts])
    arrays["doubts"] = np.frombuffer(doubts.encode(), np.uint8)
    arrays["between"] = arrays["outside"] = 0
    lesions = np.zeros(prepared.stored.shape, bool)
    for lesion in exam.lesions:
        truth, moved = np.zeros_like(tissue), False  # stays empty where the corpus gives no place
        if lesion.located:
            mask = resample_mask(dataset.lesion_mask(exam, lesion), prepared.stored.shape)
            truth, moved = truth_on_grid(mask, rows, columns)
            lesions |= mask
        name = f"truth.{lesion.kind}"
        arrays[name] = arrays.get(name, np.zeros_like(tissue)) | truth
        arrays["between"] += int(moved)
        arrays["outside"] += int(lesion.located and not (truth & tissue).any())
    for lesion in exam.lesions:
        if not lesion.located:  # which of the other places are its own nobody knows, so none of the kind is taken
            arrays[f"truth.{lesion.kind}"] = np.zeros_like(tissue)
    arrays["picture"], arrays["lesions"] = reduced(prepared.shown, lesions)
    arrays["shape"], arrays["spacing_mm"] = (h, w), prepared.spacing_mm
    arrays["source_shape"] = prepared.source.pixels.shape[:2]
    return arrays


def _save(url: str, arrays: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    storage.write_bytes(url, buffer.getvalue())


def _load(url: str) -> dict[str, np.ndarray]:
    return bounded.load_npz(storage.read_bytes(url), url)
