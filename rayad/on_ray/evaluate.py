"""Detectors on the images of a labelled data set: the figures, the pictures and the page."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rayad import provenance, storage
from rayad.datasets.exam import Exam, Images, source_of
from rayad.datasets.splits import assign
from rayad.errors import OptionError
from rayad.evaluation import figures, ranks, report, seeds, table, verdicts
from rayad.evaluation.figures import Map, View
from rayad.evaluation.findings import findings
from rayad.evaluation.heatmap import if_healthy
from rayad.evaluation.metrics import Scored, usable
from rayad.imaging.picture import Preprocessing, described
from rayad.imaging.spacing import resample_mask
from rayad.on_ray import stages
from rayad.on_ray.cluster import tasks
from rayad.on_ray.score import ScoredImage, identity
from rayad.patches.corpus import fingerprint
from rayad.scoring import counterfactual
from rayad.scoring.calibrate import Calibration, image_score
from rayad.scoring.detector import Detector

ALARM = 0.99
"""Healthy quantile above which a place is marked; no label enters."""
FEW_RESAMPLES = 20
"""Of other seeds' figures, whose intervals nobody sees."""
PANEL_DETECTORS = 6
"""Detectors in the panel, the first of the table: more are too small to see."""
PANEL_IMAGES = 2
"""Images of each kind of lesion in the panel: the first by name."""


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how."""

    dataset: str
    source: str
    split: str = "test"
    step_mm: float = 3.2
    max_failures: int = 0
    kinds: tuple[str, ...] = ()
    """Kinds of lesion, a row of the table each; empty: those of the images."""
    recipe: str = "evaluate"
    why: str = ""
    """How the settings were chosen."""
    dense: tuple[str, ...] = ()
    """Classes of tissue that count as dense; with any, figures are given for dense and other images apart."""
    compare: tuple[tuple[str, str], ...] = ()
    """Which detectors are tested against each other; none: see `pairs`."""
    literature: tuple[dict[str, Any], ...] = ()
    """Figures that others reported, on other data."""
    groups: dict[str, str] = field(default_factory=dict)
    """Detector -> heading under which the table has it."""


def evaluate(
    detectors: Sequence[Detector],
    dataset: Images,
    options: Evaluation,
    url: str,
    scores_url: str = "",
    others: Sequence[Sequence[Detector]] = (),
) -> str:
    """Score the split's images, compute every figure, write ``results.json`` and ``index.html``.

    Args:
        url: folder of the report.
        scores_url: folder for the scores; "" puts them below the report.
        others: the same detectors, trained with other seeds.

    Returns:
        The URL of the page. A report that is there and was made of the same things is left as it is.

    Raises:
        OptionError: a detector that is not calibrated, or no kind of lesion in these images.
        DatasetError: more images failed than allowed, or the split is empty.
    """
    calibrations = {d.name: _calibration(d) for d in detectors}
    exams = stages.exams_of(dataset, options.split)
    request = fingerprint(
        [[(identity(d), d.provenance["calibrated_on"]) for d in detectors], options, exams, provenance.commit()]
    )
    page = storage.join(url, "index.html")
    written = storage.join(url, "results.json")
    if storage.exists(page) and storage.read_json(written).get("request") == request:
        return page
    kinds = options.kinds or tuple(sorted({lesion.kind for e in exams for lesion in e.lesions}))
    if not kinds:
        raise OptionError(f"no lesion in the {len(exams)} images of the {options.split} split: nothing to evaluate")
    scored = _by_preprocessing(detectors, dataset, exams, options, scores_url or storage.join(url, "scores"))
    on_grid = {name: [_grid(image, name, options) for image in images] for name, images in scored.items()}
    rows = _rows(detectors, on_grid, kinds)
    grouped = [table.group_rows(d.name, on_grid[d.name], kinds) for d in detectors if options.dense]
    main = _main(detectors)
    drawn, listed = _pictures(main, detectors, calibrations, dataset, scored, on_grid, kinds)
    results: dict[str, Any] = {
        "dataset": options.dataset,
        "recipe": options.recipe,
        "commit": provenance.commit(),
        "request": request,
        "rows": rows,
        "comparisons": table.comparisons(on_grid, kinds, pairs=options.compare or pairs(detectors)),
        "ranks": {kind: ranks.ranks(table.of_patients(on_grid, kind)) for kind in kinds},
        "group_rows": [row for of, _ in grouped for row in of],
        "group_tests": [row for _, tests in grouped for row in tests],
        "seeds": _seeds(rows, others, dataset, exams, options, kinds, scores_url or storage.join(url, "scores")),
        "verdicts": [row for d in detectors for row in verdicts.rows(d.name, on_grid[d.name], calibrations[d.name])],
        "calibration_patients": min(c.patients for c in calibrations.values()),
        "counts": counts(dataset),
        "images": listed,
        "heatmap_detector": main.name,
        "settings": _settings(detectors, options),
        "groups": options.groups,
        "literature": list(options.literature),
        "costs": {d.name: _cost(d, scored[d.name]) for d in detectors},
        "row_provenance": {d.name: _origin(d, options) for d in detectors},
        "provenance": {"source": options.source, "split": options.split, **provenance.versions()},
        "notes": _notes(next(iter(scored.values())), options),
    }
    return report.build(results, drawn, url)


def pairs(detectors: Sequence[Detector]) -> list[tuple[str, str]]:
    """Which detectors are compared: a model's likelihood with its reconstruction, and every learned detector with
    every one that learns nothing. Both must see the same picture, so that they score the same places."""
    return [
        (a.name, b.name)
        for a in detectors
        for b in detectors
        if a.model and a.preprocessing == b.preprocessing and (not b.model or a.name == f"{b.name}-spn")
    ]


def counts(dataset: Images) -> dict[str, dict[str, int]]:
    """Split -> its images and patients."""
    exams, found = dataset.exams(), defaultdict(list)
    assigned = assign(exams)
    for exam in exams:
        found[assigned[exam.exam_id]].append(exam.patient_id)
    return {split: {"images": len(ids), "patients": len(set(ids))} for split, ids in sorted(found.items())}


def _calibration(detector: Detector) -> Calibration:
    if detector.calibration is None:
        raise OptionError(f"detector {detector.name!r} is not calibrated: run rayad calibrate first")
    return detector.calibration


def _by_preprocessing(
    detectors: Sequence[Detector], dataset: Images, exams: Sequence, options: Evaluation, url: str
) -> dict[str, list[ScoredImage]]:
    """Detector -> its scored images; detectors that share their preprocessing see each image prepared once."""
    groups: dict[Preprocessing, list[Detector]] = defaultdict(list)
    for detector in detectors:
        groups[detector.preprocessing].append(detector)
    found = {}
    for group in groups.values():
        label = f"{options.split} images, {', '.join(d.name for d in group)}"
        images = stages.score(group, dataset, exams, options.step_mm, url, label, options.max_failures)
        found |= {d.name: images for d in group}
    return {d.name: found[d.name] for d in detectors}


def _grid(image: ScoredImage, detector: str, options: Evaluation) -> Scored:
    exam, group = image.exam, ""
    if options.dense and exam.density:
        group = "dense" if exam.density in options.dense else "not dense"
    scores = image.scores[detector]
    return Scored(
        exam.exam_id, exam.patient_id, exam.anomalous, scores, image.tissue, image.truth, image.step_mm, group
    )


def _rows(
    detectors: Sequence[Detector], on_grid: dict[str, list[Scored]], kinds: Sequence[str], resamples: int = 1000
) -> list[table.Row]:
    """The figures of every detector and kind."""
    return [
        row
        for d in detectors
        for row in table.rows(
            d.name,
            on_grid[d.name],
            kinds,
            threshold=_calibration(d).threshold(ALARM),
            options=table.Options(resamples=resamples),
        )
    ]


def _seeds(
    rows: list[table.Row],
    others: Sequence[Sequence[Detector]],
    dataset: Images,
    exams: Sequence[Exam],
    options: Evaluation,
    kinds: Sequence[str],
    url: str,
) -> list[table.Row]:
    """The spread of the figures over the seeds; nothing where there is one."""
    runs = [rows]
    for detectors in others:
        learned = [d for d in detectors if d.model or d.members]
        scored = _by_preprocessing(learned, dataset, exams, options, url)
        on_grid = {name: [_grid(image, name, options) for image in images] for name, images in scored.items()}
        runs.append(_rows(learned, on_grid, kinds, resamples=FEW_RESAMPLES))
    return seeds.spread(runs) if others else []


def _main(detectors: Sequence[Detector]) -> Detector:
    """The detector whose heatmaps the list of images shows: the first that scores by likelihood, else the first."""
    return next((d for d in detectors if d.score == "likelihood"), detectors[0])


def _pictures(
    main: Detector,
    detectors: Sequence[Detector],
    calibrations: dict[str, Calibration],
    dataset: Images,
    scored: dict[str, list[ScoredImage]],
    on_grid: dict[str, list[Scored]],
    kinds: Sequence[str],
) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The figures by name, and the list of images with their p-values and thumbnails."""
    shown = [d for d in detectors if d.model] or list(detectors)
    calibration, images = calibrations[main.name], scored[main.name]
    jobs = [(image, mapped(calibration, image.scores[main.name])) for image in images]
    drawn = list(tasks(draw, jobs, len(jobs), "pictures", shared=(dataset, main.preprocessing)))
    thumbnails = {f"image-{i.exam.exam_id}": png for i, (_, png) in zip(images, drawn, strict=True)}
    chosen: list[int] = []
    for kind in kinds:
        held = [i for i, image in enumerate(on_grid[main.name]) if usable(image, kind) and i not in chosen]
        chosen += held[:PANEL_IMAGES]
    alike = [d for d in shown if d.preprocessing == main.preprocessing][:PANEL_DETECTORS]
    maps = {d.name: [mapped(calibrations[d.name], scored[d.name][i].scores[d.name]) for i in chosen] for d in alike}
    pictures = {}
    if chosen:
        healthy = _if_healthy(main, dataset, [images[i] for i in chosen])
        pictures["panel"] = figures.panel([drawn[i][0] for i in chosen], maps, healthy)
    drawn_apart = detectors[: 2 * PANEL_DETECTORS]
    pictures["distributions"] = figures.distributions({d.name: _classes(on_grid[d.name], kinds) for d in drawn_apart})
    return pictures | thumbnails, _listed([main], calibrations, scored)


def draw(dataset: Images, preprocessing: Preprocessing, image: ScoredImage, found: Map) -> tuple[View, bytes]:
    """The image as figures take it, and its thumbnail."""
    exam = image.exam
    prepared = preprocessing.prepare(source_of(dataset, exam))
    truth = np.zeros(prepared.stored.shape, bool)
    for lesion in exam.lesions:
        if lesion.located:
            truth |= resample_mask(dataset.lesion_mask(exam, lesion), prepared.stored.shape)
    shown = prepared.stored if preprocessing.channels == 1 else prepared.pixels
    view = View(exam.exam_id, shown, prepared.spacing_mm, image.rows, image.columns, truth)
    return view, figures.thumbnail(view, found)


def _if_healthy(detector: Detector, dataset: Images, images: Sequence[ScoredImage]) -> list[figures.Healthy]:
    """The healthy counterfactual of each image; none for a detector that has none."""
    if counterfactual.lacking(detector):
        return []
    jobs = [(image.exam,) for image in images]
    return list(tasks(explain, jobs, len(jobs), "counterfactuals", shared=(dataset, detector)))


def explain(dataset: Images, detector: Detector, exam: Exam) -> figures.Healthy:
    """What an image would look like if it were healthy."""
    prepared = detector.preprocessing.prepare(source_of(dataset, exam))
    return if_healthy(detector, prepared)


def mapped(calibration: Calibration, scores: np.ndarray) -> Map:
    """Scores as healthy quantiles, and the places above the alarm quantile."""
    quantile = calibration.healthy_quantile(scores)
    return Map(quantile, np.nan_to_num(quantile) > ALARM)


def _classes(scored: Sequence[Scored], kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """Scores of healthy images' places and of places inside each kind of lesion, or of its images without places."""
    found = {"healthy": [i.scores[i.tissue] for i in scored if i.diseased is False]}
    for kind in kinds:
        placed = [i.scores[i.lesion(kind) & i.tissue] for i in scored if usable(i, kind)]
        found[kind] = placed or [i.scores[i.tissue] for i in scored if i.holds(kind)]  # a corpus may give no places
    return {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in found.items()}


def _listed(
    detectors: Sequence[Detector], calibrations: dict[str, Calibration], scored: dict[str, list[ScoredImage]]
) -> list[dict[str, Any]]:
    """A row an image: whose it is, what is known of it, and its p-values."""
    rows: dict[str, dict[str, Any]] = {}
    for detector in detectors:
        calibration, images = calibrations[detector.name], scored[detector.name]
        single = {i.exam.exam_id: image_score(i.scores[detector.name], calibration.top) for i in images}
        highest: dict[str, float] = defaultdict(lambda: -np.inf)
        for image in images:
            patient = image.exam.patient_id
            highest[patient] = max(highest[patient], single[image.exam.exam_id])
        for image in images:
            exam = image.exam
            marked = image.scores[detector.name]
            quantile = calibration.healthy_quantile(marked)
            listed, number = findings(marked, quantile, ALARM, image.step_mm)
            row = rows.setdefault(
                exam.exam_id,
                {
                    "exam_id": exam.exam_id,
                    "patient_id": exam.patient_id,
                    "diseased": exam.anomalous,
                    "lesions": sorted({lesion.kind for lesion in exam.lesions}),
                    "thumbnail": f"image-{exam.exam_id}",
                    "findings": [asdict(finding) for finding in listed],
                    "more_findings": number - len(listed),
                    "p": {},
                },
            )
            exam_p = calibration.exam_p(highest[exam.patient_id])
            row["p"][detector.name] = {"image": calibration.image_p(single[exam.exam_id]), "exam": exam_p}
    return list(rows.values())


def _settings(detectors: Sequence[Detector], options: Evaluation) -> dict[str, Any]:
    said: dict[str, Any] = {"distance of places": f"{options.step_mm:g} mm"}
    if options.why:
        said["how they were chosen"] = options.why
    for one in detectors:
        parts = [str(p.config) for p in (one.model, one.density) if p]
        how = [f"{k}={v}" for k, v in described(one.preprocessing).items()]
        said[one.name] = "; ".join([", ".join(how), str(one.aggregation), *parts, one.provenance.get("settings", "")])
    return said


def _cost(detector: Detector, images: Sequence[ScoredImage]) -> dict[str, float]:
    """What training took, its model's and its density's, and the median over the images of what scoring took."""
    seconds = float(np.median([image.seconds[detector.name] for image in images]))
    return {"train_minutes": detector.provenance.get("train_minutes", 0.0), "score_seconds": seconds}


def _origin(detector: Detector, options: Evaluation) -> dict[str, Any]:
    """Where a row comes from."""
    names = ("corpus", "seed", "commit", "machine", "versions")
    return {"recipe": options.recipe, **{name: detector.provenance.get(name) for name in names}}


def _notes(images: Sequence[ScoredImage], options: Evaluation) -> list[str]:
    reflected, places = sum(i.reflected for i in images), sum(int(i.tissue.sum()) for i in images)
    between = sum(i.between for i in images)
    return [
        f"{reflected} of {places} places have a patch that reaches over the image's border, as at the chest wall; "
        "there the image is continued by reflection.",
        f"{between} lesions hold no centre of the grid and took their nearest place.",
        f"Places are {options.step_mm:g} mm apart.",
    ]
