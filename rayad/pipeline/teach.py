"""Detectors and a few labels to a detector that was taught by them; no model or density learns anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayad import bounds
from rayad.datasets.content import contents
from rayad.datasets.exam import Exam, Images, Lesion, circle_mask, listed, source_of
from rayad.errors import ImageError, reason
from rayad.evaluation.metrics import truth_on_grid
from rayad.fingerprint import fingerprint
from rayad.imaging.picture import Prepared, step_px
from rayad.imaging.spacing import resample_mask
from rayad.patches.sample import generator
from rayad.pipeline.combine import compared_with_healthy
from rayad.pipeline.detectors import alike, identity, inherited, patient_hash, require_names, require_shares
from rayad.pipeline.labelled import Labelled, healthy_images, labelled_images
from rayad.pipeline.requests import TeachRequest
from rayad.pipeline.score import KeptScores, Preparation, score, seen_by, tolerate, unscored
from rayad.pool import Pool
from rayad.scoring import teaching
from rayad.scoring.dense import places
from rayad.scoring.detector import Detector, Taught, described, latents_of
from rayad.scoring.taught import Logistic, Reduction, Teaching, features
from rayad.scoring.teaching import HEALTHY, LESION, REJECTED, UNLABELLED, Examples, Lesson

MOST_HEALTHY, FEWEST = 5_000, 20
"""Places of all healthy images that are learned from, and of one at least."""
MOST_UNLABELLED = 300
"""Places of an image with marked lesions, to which these are compared."""
MOST_OF_IMAGE = 5_000
"""Places of an image of which it is known alone that there is a lesion."""
AXES = 16
"""Principal axes of latents that become features, at most."""

Described = dict[str, np.ndarray]
"""Of some places of one image: ``rarities`` and ``latents`` (a row each), ``role``, and ``number`` of the image's
lesion or rejected finding."""


def teach(
    pool: Pool,
    name: str,
    request: TeachRequest,
    members: Sequence[Detector],
    dataset: Images,
    step_mm: float,
    url: str,
    max_failures: int = 0,
) -> Detector:
    """A detector that learned from labels how the scores of others tell lesions.

    How rare a member's score is, is learned from the validation patients, as by `combine`. Negative are places of
    healthy training and validation patients; calibration patients serve nothing but the p-values of what comes out.
    Patients whose labels taught stand in its provenance as hashes, and are never judged with it.

    Args:
        url: folder for the members' scores.
        max_failures: images that may fail.

    Raises:
        OptionError: two members of one name, no label, or latents of detectors that have none.
        DatasetError: a table that is none of readings, or more images failed.
    """
    require_names(members)
    require_shares(members, dataset)
    origin = {k: members[0].origin(k) for k in ("corpus", "dataset", "commit", "versions", "machine")}
    origin |= inherited(*(member.provenance for member in members))
    with_latents = request.features == "scores-and-latents"
    if with_latents:
        latents_of(members)
    labelled = labelled_images(request, dataset)
    healthy = healthy_images(dataset, labelled)
    calibrated = compared_with_healthy(pool, members, dataset, step_mm, url, max_failures)
    described_images, exams = _described(
        pool, calibrated, dataset, labelled, healthy, step_mm, url, request, max_failures
    )
    reduction = reduction_of(described_images) if with_latents else None
    lesson = teaching.teach(
        request.kind, examples(described_images, exams, reduction), request.seed, by_images=request.labels == "images"
    )
    labels = {image.exam.exam_id: image for image in labelled}
    taught = [labels[exam.exam_id] for exam in exams if exam.exam_id in labels]
    learned_from = [contents(dataset, exams), [[image.lesions, image.rejected] for image in taught], step_mm]
    made_of = fingerprint(
        [[identity(d), d.origin("calibrated_on")] for d in calibrated] + [_asked(request), learned_from]
    )
    patients = sorted({patient_hash(image.exam.patient_id) for image in taught} | set(origin.get("taught_by", ())))
    origin |= {
        "made_of": made_of,
        "seed": request.seed,
        "settings": _settings(request, taught, lesson),
        "train_minutes": sum(d.provenance.get("train_minutes", 0.0) for d in members),
        "taught_by": patients,
        "held_out": {f"{strength:g}": figure for strength, figure in lesson.figures.items()},
    }
    return Detector(
        name, Taught(tuple(calibrated), Teaching(lesson.odds, reduction)), members[0].preprocessing, provenance=origin
    )


def _asked(request: TeachRequest) -> list[Any]:
    """What of the request changes what is learned, beside the labels."""
    return [request.kind, request.features, request.labels, request.seed]


def _settings(request: TeachRequest, taught: Sequence[Labelled], lesson: Lesson) -> str:
    """What a report says of it."""
    lesions, rejected = sum(len(i.lesions) for i in taught), sum(len(i.rejected) for i in taught)
    patients = len({image.exam.patient_id for image in taught})
    labels = f"{lesions} lesions, {rejected} rejected findings" if request.labels == "lesions" else "labels of images"
    figures = ""
    if lesson.figures:
        figures = (
            f"; held out they have {lesson.figures[lesson.strength]:.3f}, by the first detector alone "
            f"{lesson.figures[0.0]:.3f}"
        )
    return (
        f"{request.kind} of {request.features}, taught by {labels} in {len(taught)} images of {patients} patients, "
        f"strength {lesson.strength:g}{figures}"
    )


def _described(
    pool: Pool,
    members: Sequence[Detector],
    dataset: Images,
    labelled: Sequence[Labelled],
    healthy: Sequence[Exam],
    step_mm: float,
    url: str,
    request: TeachRequest,
    max_failures: int,
) -> tuple[list[Described], list[Exam]]:
    """Places of the images that could be scored, and these images."""
    exams = seen_by(members, [*(image.exam for image in labelled), *healthy], listed(dataset)[0])
    lost = dict[str, str]()
    for group in alike(members):
        label = f"images that teach, {', '.join(d.name for d in group)}"
        _, failures = score(pool, group, dataset, exams, step_mm, url, label, max_failures)
        lost |= {failure["exam_id"]: failure["reason"] for failure in failures}
    exams = [exam for exam in exams if exam.exam_id not in lost]
    keep = KeptScores.of(dataset, exams, url, [first_member(members)], step_px(members[0].preprocessing, step_mm))
    marks = {image.exam.exam_id: image for image in labelled}
    most = {
        HEALTHY: max(FEWEST, MOST_HEALTHY // len(healthy)),
        UNLABELLED: MOST_OF_IMAGE if request.labels == "images" else MOST_UNLABELLED,
    }
    work = (dataset, keep, marks, most, request.features == "scores-and-latents", pool.device)
    described_images, taken = [], []
    for exam, outcome in zip(exams, pool.map(PlacesThatTeach, exams, "places that teach", work, unscored), strict=True):
        if isinstance(outcome, str):
            lost[exam.exam_id] = outcome
        else:
            described_images.append(outcome)
            taken.append(exam)
    failures = [{"exam_id": exam_id, "reason": why} for exam_id, why in lost.items()]
    tolerate(failures, len(exams), max_failures, "images that teach")
    return described_images, taken


def first_member(members: Sequence[Detector]) -> Detector:
    """A taught detector that learned nothing: its scores are the rarities of the first member's."""
    nothing = Teaching(Logistic(np.zeros(len(members)), np.zeros(1)))
    origin = {"made_of": fingerprint([identity(member) for member in members])}
    return Detector("first member", Taught(tuple(members), nothing), members[0].preprocessing, provenance=origin)


@dataclass(frozen=True)
class PlacesThatTeach:
    """Describes places of images as a taught detector sees them."""

    dataset: Images
    keep: KeptScores
    """Its one detector is a taught one with the members."""
    labelled: Mapping[str, Labelled]
    """exam_id -> labels; an image without is healthy."""
    most: Mapping[int, int]
    """How many healthy places of an image, and how many unlabelled ones."""
    with_latents: bool = False
    device: str = "cpu"

    @staticmethod
    def prepare(
        dataset: Images,
        keep: KeptScores,
        labelled: Mapping[str, Labelled],
        most: Mapping[int, int],
        with_latents: bool,
        device: str,
        exam: Exam,
    ) -> Prepared:
        """The image as the call needs it."""
        return keep.detectors[0].preprocessing.prepare(source_of(dataset, exam))

    def __call__(self, exam: Exam, prepared: Preparation | None = None) -> Described | str:
        """The places, or why there are none."""
        self.keep.on(self.device)
        try:
            image = (prepared and prepared()) or self.keep.detectors[0].preprocessing.prepare(
                source_of(self.dataset, exam)
            )
            with bounds.within(bounds.current().score_seconds, "score_seconds"):
                return self._places(image, exam)
        except Exception as error:  # noqa: BLE001, whatever it is, the other images are scored
            return reason(error)

    def _places(self, image: Prepared, exam: Exam) -> Described:
        detector, step = self.keep.detectors[0], self.keep.step
        rows, columns = places(image.stored.shape[0], image.stored.shape[1], step)
        tissue = image.tissue[np.ix_(rows, columns)]
        role, number = self._labels(image, exam, rows, columns)
        role, number = role[tissue], number[tissue]
        chosen = np.isin(role, (LESION, REJECTED))
        for drawn in (HEALTHY, UNLABELLED):
            others = np.nonzero(role == drawn)[0]
            chosen[generator(0, exam.exam_id).permutation(others)[: self.most[drawn]]] = True
        heatmaps = {name: heatmap for name, (heatmap, _) in self.keep.known(detector, exam).items()}
        rarities, latents = described(
            detector.members, image, step, tissue, detector.preprocessing, heatmaps, self.with_latents
        )
        if not np.isfinite(rarities[:, 0]).all():
            raise ImageError(f"{detector.members[0].name} scores a place with a number that is not finite")
        return {
            "rarities": rarities[chosen].astype(np.float32),
            "latents": latents[chosen].astype(np.float32),
            "role": role[chosen],
            "number": number[chosen],
        }

    def _labels(
        self, image: Prepared, exam: Exam, rows: np.ndarray, columns: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The role of each place of the grid, and the number of its lesion or rejected finding."""
        role = np.full((len(rows), len(columns)), UNLABELLED if exam.exam_id in self.labelled else HEALTHY)
        number = np.zeros_like(role)
        labels = self.labelled.get(exam.exam_id, Labelled(exam))
        for kind, marked in (
            (REJECTED, labels.rejected),
            (LESION, labels.lesions),
        ):  # a lesion is more than a rejection
            for n, lesion in enumerate(marked):
                inside, _ = truth_on_grid(self._mask(image, exam, lesion), rows, columns)
                role[inside], number[inside] = kind, n
        return role, number

    def _mask(self, image: Prepared, exam: Exam, lesion: Lesion) -> np.ndarray:
        """The pixels of a lesion, or of the circle of a finding, at working resolution."""
        if lesion in exam.lesions:
            mask = self.dataset.lesion_mask(exam, lesion)
        else:
            assert lesion.circle is not None  # findings have one
            mask = circle_mask(image.source.pixels.shape[:2], lesion.circle)
            if not mask.any():
                row, column, _ = lesion.circle
                raise ImageError(f"{exam.exam_id}: a finding at row {row:g}, col {column:g} lies outside of it")
        return resample_mask(mask, image.stored.shape)


def examples(
    described_images: Sequence[Described], exams: Sequence[Exam], reduction: Reduction | None = None
) -> Examples:
    """The places of all images as what is learned from, in the order of the images."""
    images = np.repeat(np.arange(len(described_images)), [len(image["role"]) for image in described_images])
    patients = {patient: n for n, patient in enumerate(dict.fromkeys(exam.patient_id for exam in exams))}
    patient_of_image = np.array([patients[exam.patient_id] for exam in exams])
    role, number = (np.concatenate([image[name] for image in described_images]) for name in ("role", "number"))
    rarities, latents = (
        np.concatenate([image[name] for image in described_images]) for name in ("rarities", "latents")
    )
    marked = np.isin(role, (LESION, REJECTED))
    _, group = np.unique(np.stack([images, np.where(marked, number + 1, 0)]), axis=1, return_inverse=True)
    return Examples(
        features(rarities, latents, reduction),
        role.astype(np.int64),
        group.ravel().astype(np.int64),
        images,
        patient_of_image[images],
    )


def reduction_of(described_images: Sequence[Described]) -> Reduction:
    """The principal axes of the latents of healthy places, along which these have variance 1."""
    latents = np.concatenate([image["latents"][image["role"] == HEALTHY] for image in described_images]).astype(
        np.float64
    )
    latents = latents[np.isfinite(latents).all(1)]
    if len(latents) < 2:
        raise ImageError("no healthy place has latents")
    mean = latents.mean(0)
    variances, vectors = np.linalg.eigh(np.atleast_2d(np.cov(latents.T)))
    chosen = np.argsort(-variances)[:AXES]
    chosen = chosen[variances[chosen] > 1e-9 * max(variances.max(), 1e-30)]
    return Reduction(mean, vectors[:, chosen] / np.sqrt(variances[chosen]))
