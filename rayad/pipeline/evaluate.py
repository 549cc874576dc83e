"""Detectors on the images of a labelled data set: the figures, the pictures and the page."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import Any

import numpy as np

from rayad import catalog, provenance, storage
from rayad.datasets.content import contents
from rayad.datasets.exam import Exam, Excluded, Images, listed, reasons
from rayad.datasets.splits import EVERY, LABEL_FREE, assign
from rayad.errors import OptionError
from rayad.evaluation import ranks, report, seeds, table, verdicts
from rayad.evaluation.metrics import ANY, Scored
from rayad.evaluation.results import MIXED, TAUGHT, Results
from rayad.fingerprint import fingerprint
from rayad.imaging.picture import Preprocessing, described
from rayad.patches.corpus import Corpus
from rayad.pipeline import pictures
from rayad.pipeline.detectors import require_names, require_shares, require_unseen
from rayad.pipeline.score import ScoredImage, exams_to_judge, identity, score
from rayad.pool import Pool
from rayad.scoring import bundle
from rayad.scoring.calibrate import Calibration
from rayad.scoring.detector import Detector
from rayad.scoring.regions import ALARM

NO_CORPORA: Mapping[str, Corpus] = MappingProxyType({})
FEW_RESAMPLES = 20
"""Of other seeds' figures, whose intervals nobody sees."""


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how."""

    dataset: str
    source: str
    split: str = "test"
    step_mm: float = 3.2
    max_failures: int = 0
    kinds: tuple[str, ...] = ()
    """Kinds of lesion, a row of the table each; empty: those of the images, or one row where labels name none."""
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
    notes: tuple[str, ...] = ()
    """Sentences that stand below the tables."""
    bundles: dict[str, str] = field(default_factory=dict, repr=False)
    """Detector -> URL of its bundle, whose hash a reader's answers bear; results do not depend on it."""


def evaluate(
    pool: Pool,
    detectors: Sequence[Detector],
    dataset: Images,
    options: Evaluation,
    url: str,
    scores_url: str = "",
    other_seeds: Sequence[Sequence[Detector]] = (),
    corpora: Mapping[str, Corpus] = NO_CORPORA,
) -> str:
    """Score the split's images, compute every figure, write ``results.json`` and ``index.html``.

    Args:
        url: folder of the report.
        scores_url: folder for the scores; "" puts them below the report.
        other_seeds: the same detectors, trained with other seeds.
        corpora: content -> the corpora that detectors learned from; strips show what their models make of patches.

    Returns:
        The URL of the page. Patients whose labels taught a detector are not on it: a line on the terminal and a note on
        the page count them. A report that is there and was made of the same things is left as it is, unless images
        failed, which are tried again.

    Raises:
        OptionError: a detector that is not calibrated, or with places another distance apart, or no kind of lesion in
            these images.
        DatasetError: more images failed than allowed, or the split is empty.
    """
    require_names(detectors)
    require_unseen(detectors, options.split)
    if options.split != EVERY:
        require_shares(detectors, dataset)
    calibrations = {d.name: calibration_of(d) for d in detectors}
    for detector in detectors:
        detector.step(options.step_mm)
    judged = [*detectors, *chain.from_iterable(other_seeds)]
    exams, left_out = exams_to_judge(dataset, options.split, judged)
    detector_hashes = [
        [(identity(d), d.origin("calibrated_on"), *filter(None, [d.rule])) for d in run]
        for run in (detectors, *other_seeds)
    ]
    request = fingerprint([detector_hashes, options, contents(dataset, exams), provenance.commit()])
    page = storage.join(url, "index.html")
    results_url = storage.join(url, "results.json")
    existing = storage.read_json(results_url) if storage.exists(page) else {}
    if existing.get("request") == request and not existing.get("failures"):
        return page
    kinds = options.kinds or tuple(sorted({lesion.kind for e in exams for lesion in e.lesions}))
    kinds = kinds or (ANY,) * any(exam.anomalous for exam in exams)
    if not kinds:
        raise OptionError(f"no lesion in the {len(exams)} images of the {options.split} split: nothing to evaluate")
    scores_url = scores_url or storage.join(url, "scores")
    scored, failures = _by_preprocessing(pool, detectors, dataset, exams, options, scores_url)
    on_grid = {name: [_grid(image, name, options) for image in images] for name, images in scored.items()}
    rows = _rows(pool, detectors, on_grid, kinds)
    grouped = [table.group_rows(d.name, on_grid[d.name], kinds) for d in detectors if options.dense]
    main_detector = _main(detectors)
    main_url = options.bundles.get(main_detector.name, "")
    strips = pictures.strips_of(detectors, corpora)
    shown = pictures.Shown(main_detector, tuple(detectors), calibrations, dataset, scored, on_grid, tuple(kinds))
    results = Results(
        dataset=options.dataset,
        recipe=options.recipe,
        commit=provenance.commit(),
        request=request,
        rows=rows,
        comparisons=table.comparisons(
            on_grid,
            kinds,
            pairs=options.compare or pairs(detectors),
            over=lambda compare, items: pool.map(compare, items, "comparisons"),
        ),
        ranks={kind: ranks.ranks(table.of_patients(on_grid, kind)) for kind in kinds},
        group_rows=[row for rows_of_detector, _ in grouped for row in rows_of_detector],
        group_tests=[row for _, tests in grouped for row in tests],
        seeds=_seeds(pool, rows, other_seeds, dataset, exams, options, kinds, scores_url),
        verdicts=[
            row for d in detectors for row in verdicts.rows(d.name, on_grid[d.name], calibrations[d.name], d.rule)
        ],
        calibration_patients=min(c.patients for c in calibrations.values()),
        counts=counts(dataset),
        images=shown.listed(),
        scores=shown.scores,
        heatmap_detector=main_detector.name,
        heatmap_sha256=main_url and bundle.sha256(main_url),
        rule=main_detector.rule.sentence if main_detector.rule else "",
        settings=_settings(detectors, options),
        groups=options.groups,
        remarks={d.name: remark for d in detectors if (remark := _remark(d))},
        captions={name: caption for name, (_, caption) in strips.items()},
        literature=list(options.literature),
        costs={d.name: _cost(d, scored[d.name]) for d in detectors},
        row_provenance={d.name: _origin(d, options) for d in detectors},
        provenance={"source": options.source, "split": options.split, **provenance.versions()},
        failures=failures,
        notes=[
            *options.notes,
            *([f"{left_out}."] if left_out else []),
            *_notes(next(iter(scored.values())), options),
            *_doubtful(main_detector.name, calibrations[main_detector.name], scored[main_detector.name]),
        ],
    )
    return report.build(results, shown.drawn(pool) | {name: picture for name, (picture, _) in strips.items()}, url)


def pairs(detectors: Sequence[Detector]) -> list[tuple[str, str]]:
    """Which detectors are compared: a model's likelihood with its reconstruction, and every learned detector with
    every one that learns nothing; where there are none of these, each with each. Both see the same picture, so they
    score the same places."""
    alike = [(a, b) for a in detectors for b in detectors if a is not b and a.preprocessing == b.preprocessing]
    chosen = [(a.name, b.name) for a, b in alike if a.model and (not b.model or a.name == f"{b.name}-spn")]
    names = [detector.name for detector in detectors]
    return chosen or [(a.name, b.name) for a, b in alike if names.index(a.name) < names.index(b.name)]


def counts(dataset: Images) -> dict[str, dict[str, int]]:
    """Split -> its images and patients."""
    (exams, _), patients = listed(dataset), defaultdict(list)
    assigned = assign(exams)
    for exam in exams:
        patients[assigned[exam.exam_id]].append(exam.patient_id)
    return {split: {"images": len(ids), "patients": len(set(ids))} for split, ids in sorted(patients.items())}


def calibration_of(detector: Detector) -> Calibration:
    """Its calibration; OptionError without one."""
    if detector.calibration is None:
        raise OptionError(f"detector {detector.name!r} is not calibrated: run rayad calibrate first")
    return detector.calibration


def _by_preprocessing(
    pool: Pool, detectors: Sequence[Detector], dataset: Images, exams: Sequence, options: Evaluation, url: str
) -> tuple[dict[str, list[ScoredImage]], list[dict[str, str]]]:
    """Detector -> its scored images, and what failed; images are prepared once for all detectors that see them alike.

    An image that one preprocessing cannot prepare is in no detector's figures: all are judged on the same images.
    """
    groups: dict[Preprocessing, list[Detector]] = defaultdict(list)
    for detector in detectors:
        groups[detector.preprocessing].append(detector)
    images_of, failed = {}, {}
    for group in groups.values():
        label = f"{options.split} images, {', '.join(d.name for d in group)}"
        images, failures = score(pool, group, dataset, exams, options.step_mm, url, label, options.max_failures)
        images_of |= {d.name: images for d in group}
        failed |= {failure["exam_id"]: failure for failure in failures}
    judged = {name: [i for i in images if i.exam.exam_id not in failed] for name, images in images_of.items()}
    return {d.name: judged[d.name] for d in detectors}, list(failed.values())


def _grid(image: ScoredImage, detector: str, options: Evaluation) -> Scored:
    if not options.dense or not image.exam.density:
        return image.of(detector)
    return image.of(detector, "dense" if image.exam.density in options.dense else "not dense")


def _rows(
    pool: Pool,
    detectors: Sequence[Detector],
    on_grid: dict[str, list[Scored]],
    kinds: Sequence[str],
    resamples: int = 1000,
) -> list[table.Row]:
    """The figures of every detector and kind, an item a detector."""
    items = [(d.name, on_grid[d.name], calibration_of(d).threshold(ALARM)) for d in detectors]
    figures = pool.map(_figures, items, "figures", (kinds, table.Options(resamples=resamples)))
    return [row for rows in figures for row in rows]


def _figures(
    kinds: Sequence[str], options: table.Options, item: tuple[str, Sequence[Scored], float]
) -> list[table.Row]:
    name, scored, threshold = item
    return table.rows(name, scored, kinds, threshold=threshold, options=options)


def _seeds(
    pool: Pool,
    rows: list[table.Row],
    other_seeds: Sequence[Sequence[Detector]],
    dataset: Images,
    exams: Sequence[Exam],
    options: Evaluation,
    kinds: Sequence[str],
    url: str,
) -> list[table.Row]:
    """The spread of the figures over the seeds; nothing where there is one."""
    runs = [rows]
    for detectors in other_seeds:
        learned = [d for d in detectors if d.model or d.members]
        scored, _ = _by_preprocessing(pool, learned, dataset, exams, options, url)
        on_grid = {name: [_grid(image, name, options) for image in images] for name, images in scored.items()}
        runs.append(_rows(pool, learned, on_grid, kinds, resamples=FEW_RESAMPLES))
    return seeds.spread(runs) if other_seeds else []


def _main(detectors: Sequence[Detector]) -> Detector:
    """The detector whose heatmaps the list of images shows: the first that scores by likelihood, else the first."""
    return next((d for d in detectors if d.score.name == "likelihood"), detectors[0])


def _settings(detectors: Sequence[Detector], options: Evaluation) -> dict[str, Any]:
    settings: dict[str, Any] = {"distance of places": f"{options.step_mm:g} mm"}
    if options.why:
        settings["how they were chosen"] = options.why
    for detector in detectors:
        parts = [str(p.config) for p in (detector.model, detector.density) if p]
        picture_settings = [f"{k}={v}" for k, v in described(detector.preprocessing).items()]
        map_settings = [str(detector.aggregation)]
        if detector.adjustment:
            map_settings.append(f"adjusted for the place, {detector.adjustment.smoothing}")
        settings[detector.name] = "; ".join(
            [", ".join(picture_settings), *map_settings, *parts, detector.provenance.get("settings", "")]
        )
    return settings


def _cost(detector: Detector, images: Sequence[ScoredImage]) -> dict[str, float]:
    """What training took, its model's and its density's, and the median over the images of what scoring took."""
    seconds = float(np.median([image.seconds[detector.name] for image in images]))
    return {"train_minutes": detector.provenance.get("train_minutes", 0.0), "score_seconds": seconds}


def _remark(detector: Detector) -> str:
    """What a row of the table is not that its name promises: of the paper's sizes, or learned from healthy images."""
    kinds = (("models", detector.model), ("density", detector.density))
    differing = [
        f"{field}={own} ({published})"
        for folder, kind in kinds
        if kind
        for field, (own, published) in catalog.differences(folder, kind.name, kind.config).items()
    ]
    remarks = [f"beside preset=paper: {', '.join(differing)}"] if differing else []
    if detector.provenance.get("collapsed"):
        remarks.append("its model has collapsed: its scores mean nothing")
    if mixed := detector.provenance.get("mixed"):
        remarks.append(f"{MIXED} ({mixed:.0%} of those for choices)")
    if patients := detector.provenance.get("taught_by"):
        remarks.append(f"labels of {len(patients)} {TAUGHT}")
    return "; ".join(remarks)


def _origin(detector: Detector, options: Evaluation) -> dict[str, Any]:
    """Where a row comes from."""
    names = ("corpus", "seed", "commit", "machine", "versions")
    return {"recipe": options.recipe, **{name: detector.provenance.get(name) for name in names}}


def _notes(images: Sequence[ScoredImage], options: Evaluation) -> list[str]:
    reflected, places = sum(i.reflected for i in images), sum(int(i.tissue.sum()) for i in images)
    between, outside = sum(i.between for i in images), sum(i.outside for i in images)
    located = sum(lesion.located for i in images for lesion in i.exam.lesions)
    notes = {
        "Every diseased patient is judged, also those of the development split: the figures hold where nothing was "
        "chosen on these.": options.split == LABEL_FREE,
        f"{reflected} of {places} places have a patch that reaches over the image's border, as at the chest wall; "
        "there the image is continued by reflection.": reflected,
        f"{between} lesions hold no centre of the grid and took their nearest place.": between,
        f"{outside} of {located} lesions with a known place lie outside the tissue that was found, in no figure over "
        "places.": located,
        f"Places are {options.step_mm:g} mm apart.": places > len(images),
    }
    return [sentence for sentence, matters in notes.items() if matters]


def _doubtful(name: str, calibration: Calibration, images: Sequence[ScoredImage]) -> list[str]:
    """What may be wrong with the images that a detector scored, a sentence a kind."""
    doubtful = [
        Excluded(image.exam.exam_id, sentence)
        for image in images
        for sentence in (*(doubt.sentence for doubt in image.doubts), calibration.far(image.scores[name]))
        if sentence
    ]
    return [f"Doubtful: {row['count']} x {row['reason']}, such as {row['example']}." for row in reasons(doubtful)]
