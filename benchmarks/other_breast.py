"""What the other breast of a woman says about a place of one on mini-MIAS, and whether it finds lesions.

    python benchmarks/other_breast.py --source mini-mias --detector out/models/cae --out other

Densities of the latents of both breasts (rayad/scoring/other_side.py) are fitted to healthy training patients. On
healthy patients of whom nothing was learned: how many nats the other breast of the same woman, or that of another one,
tells of a place. On all diseased patients, from none of whom anything is learned or chosen: pixel AUC and mean
image-wise AUC of each score, as it is and adjusted for the place. Everything stands twice: with the woman's own other
breast, and with that of another woman (a seeded permutation of the patients), which has to lose what the first gains.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import tyro

from rayad.datasets import mias
from rayad.datasets.exam import Exam, source_of
from rayad.datasets.sides import with_other_sides
from rayad.datasets.splits import assign
from rayad.density import gaussian_mixture, spn
from rayad.density.em import EM, fit
from rayad.evaluation import metrics
from rayad.evaluation.metrics import Scored, truth_on_grid
from rayad.evaluation.significance import paired_bootstrap, wilcoxon
from rayad.imaging.counterpart import counterparts
from rayad.imaging.picture import Prepared, step_px
from rayad.imaging.position import position
from rayad.imaging.spacing import resample_mask
from rayad.patches.sample import generator
from rayad.pipeline.detectors import model_of
from rayad.pipeline.pair import EACH
from rayad.scoring import bundle, dense
from rayad.scoring.adjustment import Adjustment, adjust
from rayad.scoring.calibrate import calibrate, image_score
from rayad.scoring.combine import Aggregation, rarity
from rayad.scoring.detector import STEP_MM, Detector
from rayad.scoring.other_side import asymmetry, given_other, means_around
from rayad.scoring.scores import paired_rows
from rayad.tensors import Latents

KINDS = ("mass", "calcification", "asymmetry", "distortion")
PLACE = ("skin_mm", "rel_row", "rel_col")
SMOOTHING = Aggregation("gaussian", 3.0)
"""Of adjusted maps, as pasted lesions chose it (benchmarks/place.py)."""
JUDGED = ("own", "another")
RESULTS = Path(__file__).parent / "results" / "other_breast.json"


@dataclass(frozen=True)
class Options:
    """What is measured, and where."""

    source: str
    """Folder of mini-MIAS."""
    detector: str
    """A detector that learned from mini-MIAS, whose latents are used."""
    out: str = "other"
    """Folder for the latents."""
    seeds: int = 3
    """Seeds of the circuits."""


@dataclass(frozen=True)
class Places:
    """The scored places of one image; a row each."""

    exam: Exam
    split: str
    latents: Latents
    context: Latents
    others: dict[str, Latents]
    """Whose other breast -> its latents around the counterparts."""
    counterparts: dict[str, np.ndarray]
    """Whose other breast -> the number of the counterpart among its places."""
    other_id: dict[str, str]
    coordinates: np.ndarray
    tissue: np.ndarray
    truth: dict[str, np.ndarray]

    def drawn(self, whose: str = "own") -> Latents:
        """What is learned from."""
        rows = torch.cat([self.latents, self.others[whose], self.context], 1)
        return rows[np.sort(generator(0, self.exam.exam_id).permutation(len(rows))[:EACH])]

    def scored(self, values: np.ndarray) -> Scored:
        """Values of the places, as figures are computed of them."""
        grid = np.full(self.tissue.shape, np.nan, np.float32)
        grid[self.tissue] = values
        exam = self.exam
        return Scored(exam.exam_id, exam.patient_id, exam.anomalous, grid, self.tissue, self.truth, STEP_MM)


def densities(latents: int) -> dict[str, Callable[[int], Any]]:
    """Name -> the configuration with a seed."""
    return {
        "spn, sides apart": lambda seed: spn.Config(first=latents, replicas=1, inputs=150, seed=seed),
        "one Gaussian": lambda seed: gaussian_mixture.Config(1, regularization=0.01),
        "four Gaussians": lambda seed: gaussian_mixture.Config(4, regularization=0.01),
        "spn, random cuts": lambda seed: spn.Config(seed=seed),
        "spn, sides apart, depth 2": lambda seed: spn.Config(
            first=latents, replicas=1, depth=2, inputs=50, sums=60, seed=seed
        ),
    }


SCORED = ("spn, sides apart", "one Gaussian")
"""Densities whose scores are judged."""


def main(options: Options) -> None:
    """Print and keep both tables."""
    torch.set_num_threads(1)
    detector = bundle.load(options.detector)
    images = gathered(mias.Dataset(options.source), detector, Path(options.out))
    kept: dict[str, Any] = {"information": [], "detection": [], "tests": []}
    for name, config in densities(images[0].latents.shape[1]).items():
        for seed in range(options.seeds if name in SCORED and "spn" in name else 1):
            density = fitted(config(seed), images, seed)
            row = {"density": name, "seed": seed, **information(density, images)}
            kept["information"].append(row)
            print(json.dumps(row), flush=True)
            if name in SCORED:
                maps = scores_of(density, images)
                rows, tests = detection(maps, images)
                kept["detection"] += [{"density": name, "seed": seed, **row} for row in rows]
                kept["tests"] += [{"density": name, "seed": seed, **row} for row in tests]
                for row in (*rows, *tests):
                    print(name, seed, json.dumps(row), flush=True)
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def gathered(dataset: mias.Dataset, detector: Detector, out: Path) -> list[Places]:
    """The places of all images; what is made of the images alone is kept in a folder."""
    exams = with_other_sides(dataset.exams())
    splits = assign(exams)
    strangers = other_women(exams, splits)
    out.mkdir(parents=True, exist_ok=True)
    alone: dict[str, Alone] = {}
    for exam in exams:
        file = out / f"{exam.exam_id}.pt"
        if not file.exists():
            torch.save(_alone(dataset, detector, replace(exam, other=None)), file)
        alone[exam.exam_id] = torch.load(file, weights_only=False)
    pairs_file = out / "counterparts.pt"
    if not pairs_file.exists():
        pairs = [(exam, other) for exam in exams for other in (other_of(exam), strangers[exam.exam_id])]
        torch.save(
            {(a.exam_id, b.exam_id): _counterparts(alone[a.exam_id], alone[b.exam_id]) for a, b in pairs}, pairs_file
        )
    found = torch.load(pairs_file, weights_only=False)
    return [_places(exam, splits[exam.exam_id], strangers[exam.exam_id], alone, found) for exam in exams]


def _counterparts(image: "Alone", other: "Alone") -> np.ndarray:
    return counterparts(image.prepared, other.prepared, image.grid, other.grid)


def other_women(exams: Sequence[Exam], splits: Mapping[str, str], seed: int = 0) -> dict[str, Exam]:
    """Image -> the other breast of another woman, who serves for the same: the next of a random order of them."""
    groups: dict[tuple, dict[str, dict[str, Exam]]] = {}
    for exam in exams:
        of_group = groups.setdefault((splits[exam.exam_id] == "train", _diseased(exam, exams)), {})
        of_group.setdefault(exam.patient_id, {})[exam.laterality] = exam
    strangers = {}
    for women in groups.values():
        order = [str(name) for name in np.random.default_rng(seed).permutation(sorted(women))]
        for name, following in zip(order, order[1:] + order[:1], strict=True):
            for side, other in (("L", "R"), ("R", "L")):
                strangers[women[name][side].exam_id] = women[following][other]
    return strangers


def _diseased(exam: Exam, exams: Sequence[Exam]) -> bool:
    return any(other.anomalous for other in exams if other.patient_id == exam.patient_id)


def other_of(exam: Exam) -> Exam:
    """The image of the other breast, which every exam here has."""
    assert exam.other is not None
    return exam.other


def _places(
    exam: Exam, split: str, stranger: Exam, alone: Mapping[str, "Alone"], found: Mapping[tuple[str, str], np.ndarray]
) -> Places:
    image, others = alone[exam.exam_id], {"own": other_of(exam).exam_id, "another": stranger.exam_id}
    numbers = {whose: found[exam.exam_id, other] for whose, other in others.items()}
    return Places(
        exam,
        split,
        image.latents,
        image.context,
        {whose: alone[others[whose]].means[torch.from_numpy(number)] for whose, number in numbers.items()},
        numbers,
        others,
        image.coordinates,
        image.tissue,
        image.truth,
    )


@dataclass(frozen=True)
class Alone:
    """What is made of one image."""

    prepared: Prepared
    grid: tuple[np.ndarray, np.ndarray]
    latents: Latents
    means: Latents
    context: Latents
    coordinates: np.ndarray
    tissue: np.ndarray
    truth: dict[str, np.ndarray]


def _alone(dataset: mias.Dataset, detector: Detector, exam: Exam) -> Alone:
    image, step = detector.preprocessing.prepare(source_of(dataset, exam)), step_px(detector.preprocessing, STEP_MM)
    grid = dense.places(image.stored.shape[0], image.stored.shape[1], step)
    tissue = image.tissue[np.ix_(*grid)]
    with torch.inference_mode():
        latents, _, context = paired_rows(model_of(detector).module, image, step, tissue, PLACE)
    truth: dict[str, np.ndarray] = {}
    for lesion in exam.lesions:
        places = np.zeros_like(tissue)
        if lesion.located:
            places, _ = truth_on_grid(resample_mask(dataset.lesion_mask(exam, lesion), image.stored.shape), *grid)
        truth[lesion.kind] = truth.get(lesion.kind, np.zeros_like(tissue)) | places
    means = means_around(latents, tissue, step * image.spacing_mm)
    return Alone(image, grid, latents, means, context, position(image, *grid)[tissue], tissue, truth)


def fitted(config: Any, images: Sequence[Places], seed: int) -> Any:
    """A density of both breasts of the healthy training patients."""
    train, validation = (
        torch.cat([image.drawn() for image in images if image.split == split]) for split in ("train", "validation")
    )
    density = config.build(train.shape[1])
    if isinstance(config, spn.Config):
        fit(density, train, validation, EM(seed=seed))
    else:
        density.learn(train, validation, seed)
    return density


def healthy(images: Sequence[Places], splits: tuple[str, ...]) -> list[Places]:
    """Those of healthy patients in these splits."""
    diseased = {image.exam.patient_id for image in images if image.exam.anomalous}
    return [image for image in images if image.split in splits and image.exam.patient_id not in diseased]


def information(density: Any, images: Sequence[Places]) -> dict[str, Any]:
    """Nats a place, of healthy patients that were not learned from: log p(z | place), and what another breast adds."""
    unseen = healthy(images, ("calibration", "test"))
    size = unseen[0].latents.shape[1]
    row: dict[str, Any] = {"patients": len({image.exam.patient_id for image in unseen})}
    for whose in JUDGED:
        added: dict[str, list[float]] = {}
        alone: list[float] = []
        for image in unseen:
            parts = image.drawn(whose).split([size, size, len(PLACE)], 1)
            added.setdefault(image.exam.patient_id, []).append(-float(asymmetry(density, *parts).mean()))
            alone.append(-float(given_other(density, parts[0], torch.full_like(parts[1], torch.nan), parts[2]).mean()))
        women = [mean(values) for values in added.values()]
        row["log p(z | place)"] = round(mean(alone), 2)
        row[f"{whose} adds"] = round(mean(women), 2)
        row[f"{whose} adds, standard error"] = round(float(np.std(women, ddof=1) / np.sqrt(len(women))), 2)
    return row


Maps = dict[str, dict[str, np.ndarray]]
"""Score -> exam_id -> values of the places."""


def scores_of(density: Any, images: Sequence[Places]) -> Maps:
    """All scores of all images, as they are and adjusted for the place."""
    maps: Maps = {}
    for image in images:
        none, nowhere = torch.full_like(image.latents, torch.nan), torch.full_like(image.context, torch.nan)
        values = {
            "p(z)": given_other(density, image.latents, none, nowhere),
            "p(z | place)": given_other(density, image.latents, none, image.context),
        }
        for whose, others in image.others.items():
            values[f"p(z | other), {whose}"] = given_other(density, image.latents, others, nowhere)
            values[f"p(z | other, place), {whose}"] = given_other(density, image.latents, others, image.context)
            values[f"asymmetry, {whose}"] = values[f"p(z | other, place), {whose}"] - values["p(z | place)"]
        for name, value in values.items():
            maps.setdefault(name, {})[image.exam.exam_id] = value.cpu().numpy()
    maps |= differences(maps["p(z | place)"], images)
    for name in list(maps):
        learned = _adjustment(maps[name], images)
        maps[f"{name}, adjusted"] = {
            image.exam.exam_id: _adjusted(learned, maps[name][image.exam.exam_id], image) for image in images
        }
    for whose in JUDGED:
        unlike = maps[f"asymmetry, {whose}, adjusted"]
        maps[f"p(z | place) + asymmetry, {whose}, adjusted"] = {
            exam_id: values + unlike[exam_id] for exam_id, values in maps["p(z | place), adjusted"].items()
        }
    return maps


def differences(scores: dict[str, np.ndarray], images: Sequence[Places]) -> Maps:
    """The floor: the rarity of a place minus that of its counterpart."""
    grids: dict[str, list[np.ndarray]] = {}
    for image in healthy(images, ("validation",)):
        grids.setdefault(image.exam.patient_id, []).append(image.scored(scores[image.exam.exam_id]).scores)
    calibration = calibrate(grids)
    rarities = {exam_id: rarity(values[None], calibration)[0] for exam_id, values in scores.items()}
    return {
        f"difference of rarities, {whose}": {
            image.exam.exam_id: rarities[image.exam.exam_id]
            - rarities[image.other_id[whose]][image.counterparts[whose]]
            for image in images
        }
        for whose in JUDGED
    }


def _adjustment(scores: dict[str, np.ndarray], images: Sequence[Places]) -> Adjustment:
    rows = []
    for image in images:
        if image.split == "train":
            chosen = generator(0, image.exam.exam_id).permutation(len(image.latents))[:800]
            rows.append((scores[image.exam.exam_id][chosen], image.coordinates[chosen]))
    return adjust(rows, SMOOTHING)


def _adjusted(learned: Adjustment, values: np.ndarray, image: Places) -> np.ndarray:
    coordinates = np.zeros((*image.tissue.shape, image.coordinates.shape[1]), np.float32)
    coordinates[image.tissue] = image.coordinates
    return learned.mapped(image.scored(values).scores, image.tissue, coordinates, STEP_MM)[image.tissue]


def detection(maps: Maps, images: Sequence[Places]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Figures of every score on lesions of every kind, and the tests of what the other breast brings."""
    scored = {
        name: [image.scored(values[image.exam.exam_id]) for image in images if image.truth]
        for name, values in maps.items()
    }
    rows = []
    for name, with_lesion in scored.items():
        row: dict[str, Any] = {"score": name, **_exam_auc(maps[name], images)}
        for kind in KINDS:
            pooled, each = metrics.pool(with_lesion, kind), metrics.image_wise_auc(with_lesion, kind)
            pixel_auc = metrics.auroc(pooled.scores, pooled.anomalous)
            row[kind] = [len(each), round(pixel_auc, 3), round(mean(each.values()), 3)]
        rows.append(row)
    pairs = [
        ("p(z | other, place), own", "p(z | place)"),
        ("p(z | other, place), own", "p(z | other, place), another"),
        ("p(z | other, place), own, adjusted", "p(z | place), adjusted"),
        ("p(z | other, place), own, adjusted", "p(z | other, place), another, adjusted"),
        ("asymmetry, own, adjusted", "asymmetry, another, adjusted"),
        ("p(z | place) + asymmetry, own, adjusted", "p(z | place), adjusted"),
        ("p(z | place) + asymmetry, own, adjusted", "p(z | place) + asymmetry, another, adjusted"),
    ]
    tests = [
        {"score": name, "than": than, "kind": kind, **_test(scored[name], scored[than], kind)}
        for name, than in pairs
        for kind in KINDS
    ]
    return rows, tests


def _test(a: Sequence[Scored], b: Sequence[Scored], kind: str) -> dict[str, Any]:
    """Pixel AUC by a paired bootstrap of patients, image-wise AUC by Wilcoxon's test."""
    patients = {image.exam_id: image.patient_id for image in a}
    sides = []
    for side in (a, b):
        values: dict[str, list[float]] = {}
        for exam_id, value in metrics.image_wise_auc(side, kind).items():
            values.setdefault(patients[exam_id], []).append(value)
        sides.append(values)
    pixel = paired_bootstrap(metrics.pool(a, kind), metrics.pool(b, kind), resamples=2000)
    return {"pixel": asdict(pixel), "image-wise": asdict(wilcoxon(*sides))}


def _exam_auc(values: dict[str, np.ndarray], images: Sequence[Places]) -> dict[str, float]:
    """Images with any lesion against those of healthy patients, and against the other breasts of the same patients."""
    of_image = {image.exam.exam_id: image_score(values[image.exam.exam_id][None]) for image in images}
    unlearned = healthy(images, ("validation", "calibration", "test"))
    diseased = [image for image in images if image.exam.anomalous]
    women = {image.exam.patient_id for image in diseased}
    others = [image for image in images if image.exam.patient_id in women and not image.exam.anomalous]
    groups = {"exam AUC, healthy patients": unlearned, "exam AUC, their other breasts": others}
    return {name: round(_auc(of_image, diseased, group), 3) for name, group in groups.items()}


def _auc(scores: dict[str, float], high: Sequence[Places], low: Sequence[Places]) -> float:
    values = np.array([scores[image.exam.exam_id] for image in (*high, *low)])
    return metrics.auroc(values, np.arange(len(values)) < len(high))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
