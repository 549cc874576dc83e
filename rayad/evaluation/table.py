"""From scored images to the rows and comparisons of results.json.

Every figure is {"value" or "mean", "low", "high", ...}: null where the images do not define it, and then with a
"reason". The ends of the 95 % interval are null, with a reason, where there are too few patients.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations, product
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from rayad.arrays import GridMask
from rayad.evaluation import bootstrap, froc, metrics, significance, surface
from rayad.evaluation.metrics import PooledPlaces, Scored, Undefined
from rayad.scoring.calibrate import image_score

Row = dict[str, object]

AREAS = {
    "auc": metrics.area,
    "ap": metrics.average_precision,
    "best_dice": metrics.best_dice,
    "aupro_by_lesion": metrics.region_overlap,
}


@dataclass(frozen=True)
class Options:
    """How figures are computed."""

    top: float = 0.01
    """Share of an image's tissue places whose mean score is the image's score; 0 takes the maximum."""
    percentile: float = 99.0
    """Places above this percentile of their own image's tissue are the predicted mask (distances)."""
    resamples: int = 1000
    """Draws of patients behind an interval."""
    comparison_resamples: int = 200_000
    """Draws of patients behind a comparison of two detectors: their p has a floor of 2 / draws, which Holm's adjustment
    multiplies by the number of comparisons, often some hundred."""
    seed: int = 0


def rows(
    detector: str,
    scored: Sequence[Scored],
    kinds: Sequence[str],
    *,
    threshold: float | None = None,
    options: Options = Options(),
) -> list[Row]:
    """One row of figures for each kind of lesion.

    Args:
        detector: the name for the rows.
        scored: the test images under this detector.
        kinds: kinds of lesion; `metrics.ANY` for a row over all of them.
        threshold: a score at which Dice is taken, found without labels; None leaves Dice out.
        options: shares, percentiles, resamples.
    """
    return [
        {"detector": detector, "lesion": kind}
        | _counts(scored, kind)
        | _place_figures(scored, kind, options)
        | _image_figures(scored, kind, threshold, options)
        | _exam_figures(scored, kind, options)
        | _single_image_figures(scored, kind, options)
        | {"froc": _froc(scored, kind, options)}
        for kind in kinds
    ]


def group_rows(
    detector: str, scored: Sequence[Scored], kinds: Sequence[str], *, options: Options = Options()
) -> tuple[list[Row], list[Row]]:
    """Figures for the groups of images apart, and whether the groups differ.

    A detector that finds lesions less well in dense breasts has a lower image-wise AUROC there; the test is between
    the patients of two groups (those with images in both count in each).
    """
    rows: list[Row] = []
    tested: list[Row] = []
    groups = sorted({image.group for image in scored} - {""})
    for kind in kinds:
        aucs = {group: _of_patients([image for image in scored if image.group == group], kind) for group in groups}
        for group in groups:
            group_images = [image for image in scored if image.group == group]
            counts = _counts(group_images, kind)
            figures = _place_figures(group_images, kind, options) | _image_wise(group_images, kind, options)
            selected = {name: figures[name] for name in ("pixel_auc", "image_wise_auc")}
            head: Row = {"detector": detector, "lesion": kind, "group": group}
            rows.append(head | {name: counts[name] for name in ("images", "patients")} | selected)
        for a, b in combinations(groups, 2):
            head = {"detector": detector, "lesion": kind, "a": a, "b": b, "figure": "image_wise_auc"}
            try:
                tested.append(head | vars(significance.unpaired(aucs[a], aucs[b], seed=options.seed)))
            except Undefined as reason:
                tested.append(head | {"difference": None, "p": None, "note": str(reason)})
    return rows, tested


def _of_patients(scored: Sequence[Scored], kind: str) -> dict[str, float]:
    """Patient -> the mean AUROC of its images."""
    aucs, owner = metrics.image_wise_auc(scored, kind), {image.exam_id: image.patient_id for image in scored}
    patients = sorted({owner[exam] for exam in aucs})
    return {p: float(np.mean([auc for exam, auc in aucs.items() if owner[exam] == p])) for p in patients}


def of_patients(scored: Mapping[str, Sequence[Scored]], kind: str) -> dict[str, dict[str, float]]:
    """Detector -> patient -> the mean AUROC of its images: what ranks are taken of."""
    return {name: _of_patients(images, kind) for name, images in scored.items()}


def comparisons(
    scored: Mapping[str, Sequence[Scored]],
    kinds: Sequence[str],
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    options: Options = Options(),
    over: Callable[[Callable[..., list[Row]], list[Any]], Iterable[list[Row]]] = map,
) -> list[Row]:
    """Two detectors on the same images, for each pair, kind and figure; p adjusted by Holm over the whole list.

    Args:
        scored: detector -> the test images, the same ones in the same order for every detector.
        kinds: kinds of lesion.
        pairs: which detectors, compared at the places that both have scored; None compares each with each.
        options: resamples, shares.
        over: calls a function with each of some items, here a pair, as `map` does.
    """
    chosen = list(combinations(scored, 2)) if pairs is None else pairs
    items = [(a, b, scored[a], scored[b]) for a, b in chosen]
    return holm_adjusted([row for rows in over(partial(_compared, kinds, options), items) for row in rows])


def _compared(
    kinds: Sequence[str], options: Options, pair: tuple[str, str, Sequence[Scored], Sequence[Scored]]
) -> list[Row]:
    """One pair, two names and their images, before p is adjusted."""
    (a, b, *whole), rows = pair, list[Row]()
    at_common_places = cache(partial(metrics.at_common_places, *whole))  # or Undefined, in each row
    tests = {
        "pixel_auc": (_compare_pixels, at_common_places),
        "image_wise_auc": (_compare_images, at_common_places),
        "exam_auc": (_compare_exams, lambda: whole),
    }
    for kind, (figure, (test, images)) in product(kinds, tests.items()):
        head: Row = {"a": a, "b": b, "lesion": kind, "figure": figure}
        try:
            rows.append(head | vars(test(*images(), kind, options)))
        except Undefined as reason:
            rows.append(head | {"difference": None, "p": None, "note": str(reason)})
    return rows


def holm_adjusted(rows: Sequence[Row]) -> list[Row]:
    """Comparisons with their p adjusted by Holm over all of them."""
    adjusted_p = significance.holm([row["p"] for row in rows])  # type: ignore[reportArgumentType]  floats or None
    return [row | {"p_holm": p} for row, p in zip(rows, adjusted_p, strict=True)]


def _counts(scored: Sequence[Scored], kind: str) -> Row:
    """What stands behind the row's figures, and what fell out."""
    with_kind = [image for image in scored if image.holds(kind)]
    usable = [image for image in with_kind if metrics.usable(image, kind)]
    healthy = {image.patient_id for image in scored} - {
        image.patient_id for image in scored if image.diseased is not False
    }
    return {
        "images": len(usable),
        "patients": len({image.patient_id for image in usable}),
        "images_without_place": sum(not image.placed(kind) for image in with_kind),
        "images_outside_tissue": sum(image.placed(kind) and not metrics.usable(image, kind) for image in with_kind),
        "healthy_images": sum(image.diseased is False for image in scored),
        "healthy_patients": len(healthy),
    }


def _place_figures(scored: Sequence[Scored], kind: str, options: Options) -> Row:
    """AUROC, AP, Dice and AUPRO pooled over places."""
    names = {"auc": "pixel_auc", "ap": "pixel_ap", "best_dice": "best_dice", "aupro_by_lesion": "aupro"}
    try:
        lesions = metrics.pool(scored, kind)
        metrics.require_both(lesions.anomalous)
        values = _pooled(lesions, AREAS, options)
        healthy = _pooled(metrics.pool(scored, kind, with_healthy=True), {"auc": metrics.area}, options)["auc"]
    except Undefined as reason:
        return {name: _null("value", str(reason)) for name in (*names.values(), "pixel_auc_with_healthy")}
    figures: Row = {name: values[key] for key, name in names.items()}
    figures["pixel_ap"] = values["ap"] | {"prevalence": float(lesions.anomalous.mean())}
    figures["best_dice"] = values["best_dice"] | {"saw_labels": True}
    return figures | {"pixel_auc_with_healthy": healthy}


def _pooled(pool: PooledPlaces, measures: Mapping[str, Callable[..., np.ndarray]], options: Options) -> dict[str, Row]:
    """Exact values over all places, with intervals from histograms."""
    weights = bootstrap.draw(pool.diseased, options.resamples, options.seed)
    resampled = bootstrap.pooled(pool, dict(measures), weights)
    counts = {
        by_lesion: metrics.cumulate(pool.scores, positive.astype(float), (~pool.anomalous).astype(float))
        for by_lesion, positive in ((False, pool.anomalous), (True, pool.share))
    }
    return {
        name: _figure("value", float(measure(*counts[name.endswith("_by_lesion")])[0]), resampled[name], pool.diseased)
        for name, measure in measures.items()
    }


def _image_figures(scored: Sequence[Scored], kind: str, threshold: float | None, options: Options) -> Row:
    """Figures that are means over images: image-wise AUROC, distances; and Dice at a threshold."""
    images = [image for image in scored if metrics.usable(image, kind)]
    row = _image_wise(images, kind, options)
    distances = [surface.distances(marked(image, kind, options), image.lesion(kind)) for image in images]
    steps = [image.step_mm for image in images]
    for name, values in (
        ("hausdorff", [distance.hausdorff for distance in distances]),
        ("hd95", [distance.hd95 for distance in distances]),
        ("surface_distance", [distance.surface for distance in distances]),
    ):
        row[f"{name}_px"] = _mean(images, values, options)
        row[f"{name}_mm"] = _mean(images, [v * step for v, step in zip(values, steps, strict=True)], options)
    return row | {
        "empty_masks": sum(distance.empty > 0 for distance in distances),
        "dice": _dice(images, kind, threshold, options),
    }


def _image_wise(scored: Sequence[Scored], kind: str, options: Options) -> Row:
    """AUROC over the places of each image, the mean over images."""
    aucs = metrics.image_wise_auc(scored, kind)
    images = [image for image in scored if image.exam_id in aucs]
    return {"image_wise_auc": _mean(images, [aucs[image.exam_id] for image in images], options)}


def marked(image: Scored, kind: str, options: Options = Options()) -> GridMask:
    """The mask whose distance to the lesion is given: the highest places, but for those in lesions of other kinds."""
    return surface.highest(image.scores, image.tissue, options.percentile) & image.counted(kind)


def _dice(images: Sequence[Scored], kind: str, threshold: float | None, options: Options) -> Row:
    if threshold is None or not images:
        return _null("value", "no threshold was given" if threshold is None else "no image gives this figure")
    counts = np.array([metrics.dice_counts(image, kind, threshold) for image in images], dtype=float)
    patient, strata = _patients(images)
    weights = bootstrap.draw(strata, options.resamples, options.seed)
    resampled = bootstrap.means(counts[:, 0], patient, weights) / bootstrap.means(counts[:, 1], patient, weights)
    value = float(counts[:, 0].sum() / counts[:, 1].sum())
    return _figure("value", value, resampled, strata) | {"threshold": threshold, "saw_labels": False}


def _exam_figures(scored: Sequence[Scored], kind: str, options: Options) -> Row:
    """AUROC and AP of patients with this kind against healthy patients."""
    patient_scores = metrics.patient_scores(scored, kind, options.top)
    scores = np.array([score for score, _ in patient_scores.values()], dtype=float)
    diseased = np.array([is_diseased for _, is_diseased in patient_scores.values()], dtype=bool)
    counted: Row = {"diseased": int(diseased.sum()), "healthy": int((~diseased).sum())}
    try:
        metrics.require_both(diseased)
    except Undefined as reason:
        return {name: _null("value", str(reason)) | counted for name in ("exam_auc", "exam_ap")}
    ids = tuple(patient_scores)
    patients = PooledPlaces(scores, diseased, diseased.astype(float), np.arange(scores.size), ids, diseased)
    values = _pooled(patients, {"auc": metrics.area, "ap": metrics.average_precision}, options)
    prevalence: Row = {"prevalence": float(diseased.mean())}
    return {"exam_auc": values["auc"] | counted, "exam_ap": values["ap"] | counted | prevalence}


def _single_image_figures(scored: Sequence[Scored], kind: str, options: Options) -> Row:
    """AUROC and AP of images with this kind against healthy images."""
    images = [image for image in scored if image.holds(kind) or image.diseased is False]
    scores = np.array([image_score(image.scores, options.top) for image in images], dtype=float)
    with_kind = np.array([image.holds(kind) for image in images], dtype=bool)
    counted: Row = {"diseased": int(with_kind.sum()), "healthy": int((~with_kind).sum())}
    try:
        metrics.require_both(with_kind)
    except Undefined as reason:
        return {name: _null("value", str(reason)) | counted for name in ("image_auc", "image_ap")}
    ids, owner = np.unique([image.patient_id for image in images], return_inverse=True)
    diseased = np.zeros(len(ids), dtype=bool)
    diseased[owner[with_kind]] = True
    pool = PooledPlaces(scores, with_kind, with_kind.astype(float), owner, tuple(ids), diseased)
    values = _pooled(pool, {"auc": metrics.area, "ap": metrics.average_precision}, options)
    return {
        "image_auc": values["auc"] | counted,
        "image_ap": values["ap"] | counted | {"prevalence": float(with_kind.mean())},
    }


def _froc(scored: Sequence[Scored], kind: str, options: Options) -> Row:
    """Sensitivity at each rate of false alarms an image."""
    try:
        marks = froc.marks(scored, kind)
    except Undefined as reason:
        return {"sensitivity": None, "reason": str(reason)}
    weights = np.vstack([np.ones(len(marks.patients)), bootstrap.draw(marks.diseased, options.resamples, options.seed)])
    resampled = bootstrap.sensitivities(marks, weights)
    return {
        "lesions": int(marks.lesion.sum()),
        "images": int(marks.images.sum()),
        "sensitivity": {
            f"{rate:g}": _figure("value", float(resampled[0, i]), resampled[1:, i], marks.diseased)
            for i, rate in enumerate(froc.RATES)
        },
    }


def _compare_pixels(a: Sequence[Scored], b: Sequence[Scored], kind: str, options: Options) -> significance.Difference:
    pools = metrics.pool(a, kind), metrics.pool(b, kind)
    return significance.paired_bootstrap(*pools, options.comparison_resamples, options.seed)


def _compare_images(a: Sequence[Scored], b: Sequence[Scored], kind: str, options: Options) -> significance.Difference:
    def by_patient(scored: Sequence[Scored]) -> dict[str, list[float]]:
        aucs = metrics.image_wise_auc(scored, kind)
        owner = {image.exam_id: image.patient_id for image in scored}
        return {p: [auc for exam, auc in aucs.items() if owner[exam] == p] for p in {owner[exam] for exam in aucs}}

    return significance.wilcoxon(by_patient(a), by_patient(b))


def _compare_exams(a: Sequence[Scored], b: Sequence[Scored], kind: str, options: Options) -> significance.Difference:
    patients_a, patients_b = (metrics.patient_scores(scored, kind, options.top) for scored in (a, b))
    scores_a, scores_b = (
        np.array([scores_by_patient[patient][0] for patient in patients_a], dtype=float)
        for scores_by_patient in (patients_a, patients_b)
    )
    return significance.delong(
        scores_a, scores_b, np.array([is_diseased for _, is_diseased in patients_a.values()], dtype=bool)
    )


def _mean(images: Sequence[Scored], values: Sequence[float], options: Options) -> Row:
    """Mean and standard deviation (n - 1) over images, with the interval of the mean by patient."""
    if not values:
        return _null("mean", "no image gives this figure") | {"std": None, "images": 0}
    patient, strata = _patients(images)
    weights = bootstrap.draw(strata, options.resamples, options.seed)
    resampled = bootstrap.means(np.array(values, dtype=float), patient, weights)
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return _figure("mean", float(np.mean(values)), resampled, strata) | {"std": std, "images": len(values)}


def _patients(images: Sequence[Scored]) -> tuple[Int[np.ndarray, " i"], Bool[np.ndarray, " p"]]:
    names, index = np.unique([image.patient_id for image in images], return_inverse=True)
    return index, np.ones(names.size, dtype=bool)


def _figure(name: str, value: float, resampled: Float[np.ndarray, " r"], strata: Bool[np.ndarray, " p"]) -> Row:
    limits, reason = bootstrap.interval(resampled, strata)
    if limits is None:
        return {name: value, "low": None, "high": None, "reason": reason}
    return {name: value, "low": limits[0], "high": limits[1]}


def _null(name: str, reason: str) -> Row:
    return {name: None, "low": None, "high": None, "reason": reason}
