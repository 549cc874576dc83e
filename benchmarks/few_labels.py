"""How many labelled lesions help: detectors that `rayad teach` makes of 5, 10 and 20 lesions of mini-MIAS.

    python benchmarks/few_labels.py --lesion mass --source mini-mias --detector out/detectors/cae-spn ... --out few
    python benchmarks/few_labels.py --show

The first detector is the floor given its place; then those that are given. In each draw the diseased patients are
halved: lesions drawn from one half teach, the patients of the other half are judged, and the other way round, so that
all sizes and methods are judged on the same patients, none of whom taught. Negative are places of the healthy training
and validation patients. No setting was chosen by these figures.
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from rayad import catalog, provenance, storage
from rayad.datasets.exam import Exam, Images
from rayad.datasets.splits import EVERY
from rayad.evaluation import metrics
from rayad.evaluation.metrics import Scored
from rayad.imaging.mammogram import Preprocessing
from rayad.imaging.picture import step_px
from rayad.pipeline.adjust import adjust_detectors
from rayad.pipeline.combine import compared_with_healthy
from rayad.pipeline.labelled import Labelled, healthy_images
from rayad.pipeline.score import KeptScores, exams_of, score
from rayad.pipeline.teach import Described, PlacesThatTeach, examples, first_member, reduction_of
from rayad.pool import Here, Pool
from rayad.scoring import bundle, teaching
from rayad.scoring.combine import Aggregation
from rayad.scoring.detector import Detector
from rayad.scoring.scores import Floor
from rayad.scoring.taught import Reduction, features
from rayad.scoring.teaching import HEALTHY, LESION, UNLABELLED

STEP_MM = 3.2
SIZES = (5, 10, 20)
METHODS = ("logistic", "logistic-latents", "network", "forest", "boosting")
FLOORS = {
    "mass": ("relative-maximum", Floor("relative-brightness"), Preprocessing(intensity="relative"), ("maximum", 6.4)),
    "calcification": ("fine-top-hat", Floor("top-hat"), Preprocessing(spacing_mm=0.2, intensity="specks"), ("none", 0)),
}
"""Kind of lesion -> name, score, picture and aggregation of its floor, as in the recipe `mias`."""
MOST_HEALTHY, MOST_UNLABELLED = 2000, 200
"""Places of all healthy images, and of a teaching image, that are learned from or compared to."""
RESULTS = Path(__file__).parent / "results" / "few_labels.json"


@dataclass(frozen=True)
class Options:
    """What teaches, and where."""

    source: str = ""
    """Folder or URL of mini-MIAS."""
    lesion: Literal["mass", "calcification"] = "mass"
    out: str = "few"
    """Where detectors and scores go."""
    detector: tuple[str, ...] = ()
    """URLs of detectors that learned from mini-MIAS, beside the floor."""
    adjust: tuple[str, ...] = ()
    """Those of them that are taken given their place, by name."""
    first: Literal["floor", "together"] = "floor"
    """What is corrected: the floor given its place, or the mean of all rarities, which orders places as fisher does."""
    draws: int = 5
    workers: int = 2
    """Processes, a draw each."""
    methods: tuple[str, ...] = METHODS
    show: bool = False
    """Print the tables of what was measured, and measure nothing."""


@dataclass(frozen=True)
class Judged:
    """An image with a lesion of the kind, all of whose places are described."""

    exam: Exam
    places: Described
    scored: Scored
    """Under the first detector."""


def main(options: Options) -> None:
    """Measure, keep, and print a table."""
    if not options.show:
        _measure(Here(), options)
    for lesion, measured in json.loads(RESULTS.read_text()).items():
        draws = len(measured["of_draws"])
        print(f"\n**{lesion}**: {measured['images']} images, {measured['lesions']} lesions, {draws} draws\n")
        for line in _table(measured):
            print(line)


def _measure(pool: Pool, options: Options) -> None:
    """Each draw is kept when it is done."""
    url, began = storage.absolute(options.out), time.perf_counter()
    dataset = catalog.configure("datasets", "mias", {"source": storage.absolute(options.source)})
    members = compared_with_healthy(pool, _members(pool, options, dataset, url), dataset, STEP_MM, f"{url}/scores")
    diseased = [e for e in exams_of(dataset, EVERY) if any(x.kind == options.lesion and x.located for x in e.lesions)]
    labelled = [Labelled(e, tuple(x for x in e.lesions if x.kind == options.lesion and x.located)) for e in diseased]
    healthy = healthy_images(dataset, labelled)
    images = _judged(pool, members, dataset, labelled, f"{url}/scores", options)
    each = max(20, MOST_HEALTHY // len(healthy))
    with_latents = _with_latents(options)
    negatives = [
        places for _, places in _described(pool, members, dataset, [], healthy, f"{url}/scores", each, with_latents)
    ]
    print(f"described after {time.perf_counter() - began:.0f} s", flush=True)
    reduction = reduction_of(negatives) if with_latents else None
    measured = {
        "members": ["together"] * (options.first == "together") + [member.name for member in members],
        "images": len(images),
        "patients": len({image.exam.patient_id for image in images}),
        "lesions": sum(len(image.lesions) for image in labelled),
        "commit": provenance.commit(),
        "of_draws": [],
    }
    if options.first == "together":
        images = [replace(image, places=_together(image.places)) for image in images]
        negatives = [_together(places) for places in negatives]
    work = partial(_draw, images, negatives, healthy, reduction, options)
    with ProcessPoolExecutor(options.workers, get_context("fork")) as processes:
        for done in as_completed([processes.submit(work, seed) for seed in range(options.draws)]):
            measured["of_draws"].append(done.result())
            measured["minutes"] = round((time.perf_counter() - began) / 60, 1)
            _keep(options.lesion + ", together first" * (options.first == "together"), measured)


def _together(places: Described) -> Described:
    """With the mean of all rarities before them."""
    rarities = features(places["rarities"], places["latents"], None)
    return places | {"rarities": np.column_stack([rarities.mean(1), rarities]).astype(np.float32)}


def _keep(lesion: str, measured: dict) -> None:
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(kept | {lesion: measured}, indent=1) + "\n")


def _with_latents(options: Options) -> bool:
    """Whether a method needs latents."""
    return any(method.endswith("-latents") for method in options.methods)


def _members(pool: Pool, options: Options, dataset: Images, url: str) -> list[Detector]:
    """The floor given its place, and the detectors, some of them given their place."""
    name, floor, picture, (kind, size_mm) = FLOORS[options.lesion]
    origin = {"made_of": repr((floor, picture))}
    plain = Detector(name, floor, picture, Aggregation(kind, size_mm), provenance=origin)
    given = [bundle.load(storage.absolute(detector)) for detector in options.detector]
    adjusted = [plain, *(detector for detector in given if detector.name in options.adjust)]
    smoothing = Aggregation("gaussian", 3.0)
    by_name = {}
    for detector in adjusted:
        named = replace(detector, name=f"{detector.name}-place")
        where = [storage.join(url, "adjusted", named.name)]
        by_name[detector.name] = adjust_detectors(pool, [named], [smoothing], dataset, STEP_MM, where)[0]
    return [by_name[name], *(by_name.get(detector.name, detector) for detector in given)]


def _judged(
    pool: Pool, members: Sequence[Detector], dataset: Images, labelled: Sequence[Labelled], url: str, options: Options
) -> list[Judged]:
    exams = [image.exam for image in labelled]
    for member in members:
        score(pool, [member], dataset, exams, STEP_MM, url, f"diseased images, {member.name}")
    scored, _ = score(pool, members[:1], dataset, exams, STEP_MM, url, "diseased images")
    described = _described(pool, members, dataset, labelled, exams, url, 10**9, _with_latents(options))
    by_exam = {image.exam.exam_id: image.of(members[0].name) for image in scored}
    judged = [Judged(exam, places, by_exam[exam.exam_id]) for exam, places in described]
    return [image for image in judged if metrics.usable(image.scored, options.lesion)]


def _described(
    pool: Pool,
    members: Sequence[Detector],
    dataset: Images,
    labelled: Sequence[Labelled],
    exams: Sequence[Exam],
    url: str,
    each: int,
    with_latents: bool,
) -> list[tuple[Exam, Described]]:
    """Places of images as a taught detector sees them, row by row of the tissue where all are taken."""
    for member in members:
        score(pool, [member], dataset, exams, STEP_MM, url, f"images that teach, {member.name}")
    step = step_px(members[0].preprocessing, STEP_MM)
    keep = KeptScores.of(dataset, exams, url, [first_member(members)], step)
    marks, most = {image.exam.exam_id: image for image in labelled}, {HEALTHY: each, UNLABELLED: each}
    work = (dataset, keep, marks, most, with_latents, pool.device)
    outcomes = list(pool.map(PlacesThatTeach, exams, "places", work))
    if failures := [outcome for outcome in outcomes if isinstance(outcome, str)]:
        raise SystemExit(failures[0])
    return list(zip(exams, outcomes, strict=True))


def _draw(
    images: Sequence[Judged],
    negatives: Sequence[Described],
    healthy: Sequence[Exam],
    reduction: Reduction | None,
    options: Options,
    seed: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """Method -> size -> figures, of both halves; what no label taught has the size 0."""
    patients = np.random.default_rng(seed).permutation(sorted({image.exam.patient_id for image in images}))
    halves = [[i for i in images if i.exam.patient_id in half] for half in np.array_split(patients, 2)]
    pairs = [(halves[0], halves[1]), (halves[1], halves[0])]
    kind, found = options.lesion, {}
    rules = {"floor": lambda r: r[:, 0], "fisher": lambda r: r.mean(1)}
    rules |= {f"member {n}": lambda r, n=n: r[:, n] for n in range(images[0].places["rarities"].shape[1])}
    for name, rule in rules.items():
        found[name] = {
            "0": _figures([_scores(test, lambda i, rule=rule: rule(_features(i, None))) for _, test in pairs], kind)
        }
    for method in options.methods:
        axes = reduction if method.endswith("-latents") else None
        of_size = {}
        for size in SIZES:
            judged, strengths, lesions = [], [], []
            for teachers, test in pairs:
                chosen, number = _chosen(teachers, size, seed)
                learned_from = [*(places for _, places in chosen), *negatives]
                exams = [*(exam for exam, _ in chosen), *healthy]
                lesson = teaching.teach(method.partition("-")[0], examples(learned_from, exams, axes), seed)
                judged.append(_scores(test, lambda i, o=lesson.odds, a=axes: o.log_odds(_features(i, a))))
                strengths.append(lesson.strength)
                lesions.append(number)
            of_size[str(size)] = _figures(judged, kind) | {"strengths": strengths, "lesions": lesions}
        found[method] = of_size
        print(
            seed,
            method,
            {size: (f["pixel_auc"], f["image_wise_auc"], f["strengths"]) for size, f in of_size.items()},
            flush=True,
        )
    return found


def _features(image: Judged, reduction: Reduction | None) -> np.ndarray:
    return features(image.places["rarities"], image.places["latents"], reduction)


def _chosen(teachers: Sequence[Judged], size: int, seed: int) -> tuple[list[tuple[Exam, Described]], int]:
    """The images of so many lesions drawn from these, where other lesions are unlabelled; and how many there are."""
    lesions = [
        (n, number)
        for n, image in enumerate(teachers)
        for number in np.unique(image.places["number"][image.places["role"] == LESION])
    ]
    drawn = np.random.default_rng((seed, 1)).permutation(len(lesions))[:size]
    numbers: dict[int, list[int]] = {}
    for index in drawn:
        n, number = lesions[index]
        numbers.setdefault(n, []).append(int(number))
    rng = np.random.default_rng((seed, 2))
    return [(teachers[n].exam, _relabelled(teachers[n].places, kept, rng)) for n, kept in sorted(numbers.items())], len(
        drawn
    )


def _relabelled(places: Described, lesions: Sequence[int], rng: np.random.Generator) -> Described:
    """With these lesions labelled, and some of the other places."""
    is_lesion = (places["role"] == LESION) & np.isin(places["number"], lesions)
    role = np.where(is_lesion, LESION, UNLABELLED)
    others = rng.permutation(np.nonzero(~is_lesion)[0])[:MOST_UNLABELLED]
    chosen = np.sort(np.concatenate([np.nonzero(is_lesion)[0], others]))
    return {name: values[chosen] for name, values in (places | {"role": role}).items()}


def _scores(images: Sequence[Judged], scores) -> list[Scored]:
    """The images under another detector."""
    scored = []
    for image in images:
        grid = np.full(image.scored.scores.shape, np.nan)
        grid[image.scored.tissue] = scores(image)
        scored.append(replace(image.scored, scores=grid))
    return scored


def _figures(halves: Sequence[Sequence[Scored]], kind: str) -> dict[str, float]:
    """The mean of the halves' pixel AUC, and the mean of all images' AUC."""
    pools = [metrics.pool(images, kind) for images in halves]
    pixel = [metrics.auroc(places.scores, places.anomalous) for places in pools]
    each = [auc for images in halves for auc in metrics.image_wise_auc(images, kind).values()]
    return {"pixel_auc": round(float(np.mean(pixel)), 4), "image_wise_auc": round(float(np.mean(each)), 4)}


def _table(measured: dict) -> list[str]:
    lines = [
        "| detector | lesions | pixel AUC | image-wise AUC | draws in which it is above the first |",
        "|---|---|---|---|---|",
    ]
    draws, names = measured["of_draws"], measured["members"]
    for method, sizes in draws[0].items():
        if method == "floor":
            continue
        called = names[int(method.split()[1])] if method.startswith("member ") else method
        for size in sizes:
            rows = [draw[method][size] for draw in draws]
            above = sum(draw[method][size]["image_wise_auc"] > draw["floor"]["0"]["image_wise_auc"] for draw in draws)
            spread = [_spread([row[name] for row in rows]) for name in ("pixel_auc", "image_wise_auc")]
            number = np.mean([row["lesions"] for row in rows]) if "lesions" in rows[0] else 0
            lines.append(f"| {called} | {number:.3g} | {' | '.join(spread)} | {above} of {len(draws)} |")
    return lines


def _spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{np.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
