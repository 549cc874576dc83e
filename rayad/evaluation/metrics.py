"""How well scores tell lesions from healthy tissue, for places, images and exams.

A figure is computed for one kind of lesion: only images that hold the kind count, and places inside
lesions of other kinds are left out, neither anomalous nor normal. Every ROC figure is read off two
cumulative counts, anomalous (`tp`) and normal (`fp`) places at or above each distinct threshold, the
highest first; ties share a threshold, so the area is the Mann-Whitney statistic with ties at one half.
Counts have a row for each resample, one row for the figure itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from rayad.arrays import Grid, GridMask, Mask
from rayad.scoring.calibrate import image_score
from rayad.scoring.regions import regions

ANY = "any"
"""The kind that stands for a lesion of whatever kind."""


class Undefined(ValueError):  # noqa: N818  a figure is undefined; nothing failed
    """These images do not define the figure: a class, a lesion or a patient is missing."""


@dataclass(frozen=True)
class Scored:
    """One test image with its scores and its truth on the evaluation grid."""

    exam_id: str
    patient_id: str
    diseased: bool | None
    """Whether the image holds a lesion; None where the corpus does not say."""
    scores: Grid
    """Higher is more anomalous; nan outside the tissue."""
    tissue: GridMask
    truth: dict[str, GridMask]
    """The kinds of lesion in this image, each with its places; none where the corpus gives the kind but no place."""
    step_mm: float
    """Distance of neighboring places, in mm."""
    group: str = ""
    """A part of the images for which figures are given apart, such as those of dense breasts; "" where it has none."""

    def __post_init__(self) -> None:
        if self.truth and self.diseased is False:
            raise ValueError(f"{self.exam_id}: a healthy image cannot hold a lesion, got {', '.join(self.truth)}")
        if not self.tissue.any():
            raise ValueError(f"{self.exam_id}: no place lies in the tissue")
        if np.isnan(self.scores[self.tissue]).any():
            raise ValueError(f"{self.exam_id}: a place in the tissue has no score (nan)")

    def holds(self, kind: str) -> bool:
        """Whether the image holds this kind of lesion, its place known or not."""
        return bool(self.diseased) if kind == ANY else kind in self.truth

    def placed(self, kind: str) -> bool:
        """Whether the places of this kind, and of every other lesion in the image, are known."""
        located = bool(self.truth) and all(mask.any() for mask in self.truth.values())
        return located and (kind == ANY or kind in self.truth)

    def lesion(self, kind: str) -> GridMask:
        """The places of this kind of lesion, in or out of the tissue."""
        masks = [mask for name, mask in self.truth.items() if kind in (ANY, name)]
        return np.logical_or.reduce(masks) if masks else np.zeros_like(self.tissue)

    def counted(self, kind: str) -> GridMask:
        """The tissue without lesions of other kinds."""
        return self.tissue & (self.lesion(kind) | ~self.lesion(ANY))


def truth_on_grid(mask: Mask, rows: Int[np.ndarray, " gh"], cols: Int[np.ndarray, " gw"]) -> tuple[GridMask, bool]:
    """The places whose center lies in a lesion.

    Args:
        mask: one lesion, in the pixels that `rows` and `cols` count; may be empty.
        rows: rows of the places' centers.
        cols: columns of the places' centers.

    Returns:
        The places, and whether the lesion holds no center and was given the place nearest to it.
    """
    truth = mask[np.ix_(rows, cols)]
    if truth.any() or not mask.any():
        return truth, False
    distance = np.asarray(ndimage.distance_transform_edt(~mask))[np.ix_(rows, cols)]
    nearest = np.zeros_like(truth)
    nearest[np.unravel_index(distance.argmin(), distance.shape)] = True
    return nearest, True


@dataclass(frozen=True)
class PooledPlaces:
    """Places of many images, those that count for one kind of lesion."""

    scores: Float[np.ndarray, " n"]
    anomalous: Bool[np.ndarray, " n"]
    share: Float[np.ndarray, " n"]
    """An anomalous place's share in its lesion, 1 / (its places), so that a lesion's shares sum to 1; else 0."""
    patient: Int[np.ndarray, " n"]
    """The place's patient, an index into `patients`."""
    patients: tuple[str, ...]
    diseased: Bool[np.ndarray, " p"]
    """Whether a patient brings an image that holds the kind."""


def pool(scored: Sequence[Scored], kind: str, *, with_healthy: bool = False) -> PooledPlaces:
    """Collect the places of all images that hold this kind of lesion inside the tissue.

    Args:
        scored: the test images.
        kind: the kind of lesion, or `ANY`.
        with_healthy: let the places of healthy images join the normal ones.

    Raises:
        Undefined: no image holds the kind at a known place in the tissue.
    """
    with_kind = [image for image in scored if usable(image, kind)]
    if not with_kind:
        raise Undefined(f"no image holds a lesion of kind {kind!r} at a known place in the tissue")
    images = with_kind + [image for image in scored if with_healthy and image.diseased is False]
    patients = tuple(sorted({image.patient_id for image in images}))
    masks = [image.counted(kind) for image in images]
    sizes = [int(mask.sum()) for mask in masks]
    pairs = list(zip(images, masks, strict=True))
    return PooledPlaces(
        scores=np.concatenate([image.scores[mask] for image, mask in pairs]).astype(np.float64),
        anomalous=np.concatenate([image.lesion(kind)[mask] for image, mask in pairs]),
        share=np.concatenate([_shares(image.lesion(kind) & image.tissue)[mask] for image, mask in pairs]),
        patient=np.repeat([patients.index(image.patient_id) for image in images], sizes),
        patients=patients,
        diseased=np.isin(patients, [image.patient_id for image in with_kind]),
    )


def at_common_places(a: Sequence[Scored], b: Sequence[Scored]) -> tuple[list[Scored], list[Scored]]:
    """The same images at the places that both detectors scored, with the truth of the first.

    Pictures of another resolution have another tissue mask, and a place more or less at their edges.

    Raises:
        Undefined: their places are not as far apart, so that none are the same.
    """
    pairs = [_in_common(*pair) for pair in zip(a, b, strict=True)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _in_common(a: Scored, b: Scored) -> tuple[Scored, Scored]:
    if not np.isclose(a.step_mm, b.step_mm):
        raise Undefined(f"places are {a.step_mm:.4g} and {b.step_mm:.4g} mm apart")
    h, w = (min(sides) for sides in zip(a.tissue.shape, b.tissue.shape, strict=True))
    tissue = a.tissue[:h, :w] & b.tissue[:h, :w]
    if not tissue.any():
        raise Undefined(f"{a.exam_id}: no place was scored by both")
    truth = {kind: mask[:h, :w] for kind, mask in a.truth.items()}
    first, second = (
        replace(one, scores=np.where(tissue, one.scores[:h, :w], np.nan), tissue=tissue, truth=truth) for one in (a, b)
    )
    return first, second


def usable(image: Scored, kind: str) -> bool:
    """Whether an image's places count for a kind: it holds the kind, at known places, some of them in the tissue."""
    return image.placed(kind) and bool((image.lesion(kind) & image.tissue).any())


def cumulate(
    scores: Float[np.ndarray, " n"], anomalous: Float[np.ndarray, " n"], normal: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "1 t"], Float[np.ndarray, "1 t"]]:
    """Weight of anomalous and of normal places at or above each distinct score, the highest first; one row."""
    order = np.argsort(scores)[::-1]
    ranked = scores[order]
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    return np.cumsum(anomalous[order])[None, last_of_tie], np.cumsum(normal[order])[None, last_of_tie]


def area(tp: Float[np.ndarray, "r t"], fp: Float[np.ndarray, "r t"]) -> Float[np.ndarray, " r"]:
    """Area under the ROC curve: the share of (anomalous, normal) pairs in the right order, ties counted half."""
    twice = np.diff(fp, prepend=0) * (2 * tp - np.diff(tp, prepend=0))
    with np.errstate(invalid="ignore"):
        return twice.sum(axis=-1) / (2 * tp[:, -1] * fp[:, -1])


def average_precision(tp: Float[np.ndarray, "r t"], fp: Float[np.ndarray, "r t"]) -> Float[np.ndarray, " r"]:
    """Mean precision over the anomalous places, each at its own threshold; a random score gives the prevalence."""
    with np.errstate(invalid="ignore"):
        precision = np.where(tp + fp > 0, tp / (tp + fp), 0)
        return (np.diff(tp, prepend=0) * precision).sum(axis=-1) / tp[:, -1]


def best_dice(tp: Float[np.ndarray, "r t"], fp: Float[np.ndarray, "r t"]) -> Float[np.ndarray, " r"]:
    """Dice 2 tp / (tp + fp + all anomalous) at the best of all thresholds; it has seen the labels."""
    with np.errstate(invalid="ignore"):
        return (2 * tp / (tp + fp + tp[:, -1:])).max(axis=-1)


def region_overlap(
    tp: Float[np.ndarray, "r t"], fp: Float[np.ndarray, "r t"], limit: float = 0.3
) -> Float[np.ndarray, " r"]:
    """AUPRO: mean share of a lesion that is found, over false positive rates up to `limit`; 1 is perfect.

    Args:
        tp: cumulated `PooledPlaces.share`.
        fp: cumulated normal places.
        limit: the highest false positive rate; 0.3 as in Bergmann et al., Uninformed Students (CVPR 2020).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        overlap, rate = tp / tp[:, -1:], fp / fp[:, -1:]
        rise, run = np.diff(overlap, prepend=0), np.diff(rate, prepend=0)
        inside = np.clip(limit - (rate - run), 0, run)
        height = overlap - rise + np.where(run > 0, rise * inside / run, 0) / 2
        return (inside * height).sum(axis=-1) / limit


def auroc(scores: Float[np.ndarray, " n"], anomalous: Bool[np.ndarray, " n"]) -> float:
    """Exact area under the ROC curve.

    Raises:
        Undefined: one of the classes is missing.
    """
    require_both(anomalous)
    return float(area(*cumulate(scores, anomalous.astype(float), (~anomalous).astype(float)))[0])


def require_both(anomalous: Bool[np.ndarray, " n"]) -> None:
    """Refuse labels of one class.

    Raises:
        Undefined: there is no anomalous or no normal label.
    """
    count = int(anomalous.sum())
    if count in (0, anomalous.size):
        raise Undefined(f"AUROC needs both classes, got {count} anomalous and {anomalous.size - count} normal")


def image_wise_auc(scored: Sequence[Scored], kind: str) -> dict[str, float]:
    """exam_id -> AUROC over the places of that image, for images that hold both classes."""
    counted = [(image, image.counted(kind)) for image in scored if usable(image, kind)]
    return {
        image.exam_id: auroc(image.scores[mask].astype(np.float64), image.lesion(kind)[mask])
        for image, mask in counted
        if not image.lesion(kind)[mask].all()
    }


def patient_scores(scored: Sequence[Scored], kind: str, top: float = 0.01) -> dict[str, tuple[float, bool]]:
    """patient_id -> (the highest image score over the patient's images, whether the patient has this kind of lesion).

    Healthy patients, all of whose images are healthy, and patients with this kind; no others.
    """
    highest: dict[str, float] = {}
    for image in scored:
        score = image_score(image.scores[image.tissue][None], top)
        highest[image.patient_id] = max(score, highest.get(image.patient_id, -np.inf))
    with_kind = {image.patient_id for image in scored if image.holds(kind)}
    not_healthy = {image.patient_id for image in scored if image.diseased is not False}
    chosen = sorted(with_kind | (highest.keys() - not_healthy))
    return {patient: (highest[patient], patient in with_kind) for patient in chosen}


def dice_counts(image: Scored, kind: str, threshold: float) -> tuple[int, int]:
    """Numerator and denominator of an image's Dice at a threshold, both to be summed over images."""
    counted, lesion = image.counted(kind), image.lesion(kind)
    marked = counted & (image.scores > threshold)
    return 2 * int((marked & lesion).sum()), int(marked.sum()) + int((lesion & counted).sum())


def _shares(lesions: GridMask) -> Grid:
    labels, _ = regions(lesions)
    sizes = np.bincount(labels.ravel())
    return np.where(lesions, 1 / sizes[labels], 0.0)
