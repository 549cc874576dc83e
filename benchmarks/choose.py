"""Choose the settings of the recipe `mias` without a test image.

    python benchmarks/choose.py calcification --source mini-mias --out choices

A line of the recipe starts from the settings of Dietrichstein et al. 2022 (but for its learning rate, which trains
too slowly for so few patches) and answers one question after the other, in the order of `QUESTIONS`. A candidate is
trained, fitted and scored as the recipe does it, on two sets: the images of the *development half* of the diseased
patients, and phantom lesions pasted into the healthy validation patients. Its figure is the mean, over the two sets,
of the mean of pixel AUC and image-wise AUC of the likelihood for the line's kind of lesion. The first candidate is the
one that stands; another takes its place if its figure is higher by more than `MARGIN`, the best such first. Nothing
here reads the test split. Candidates that are done are not run again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import tyro

from rayad import catalog, storage
from rayad.datasets.exam import Images
from rayad.evaluation import metrics
from rayad.evaluation.metrics import Scored
from rayad.fingerprint import fingerprint
from rayad.fit import Schedule
from rayad.imaging.mammogram import Preprocessing
from rayad.on_ray.pool import connected
from rayad.patches.corpus import Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.detectors import aggregated
from rayad.pipeline.fit_density import fit_detector
from rayad.pipeline.ingest import write_corpus
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.score import exams_of, score
from rayad.pipeline.train import train_detector
from rayad.pool import Pool, Workers
from rayad.private import keep_private
from rayad.scoring.combine import Aggregation
from rayad.scoring.detector import Detector

MARGIN = 0.01
"""A third of the standard error of a figure over so few images."""
STEP_MM = 3.2
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Line:
    """What is chosen for lesions of one kind: from images to the scores of places."""

    ingest: Ingest
    schedule: Schedule
    density: DensityRequest = DensityRequest()
    aggregation: Aggregation = Aggregation()


Change = Callable[[Line], Line]


def picture(spacing_mm: float, intensity: Any) -> Change:
    return lambda line: replace(
        line, ingest=replace(line.ingest, preprocessing=Preprocessing(spacing_mm, intensity=intensity))
    )


def sampling(patches: int, contour: float) -> Change:
    return lambda line: replace(line, ingest=replace(line.ingest, sampling=Sampling(patches, contour)))


def epochs(number: int) -> Change:
    return lambda line: replace(line, schedule=replace(line.schedule, epochs=number))


def circuit(inputs: int, replicas: int) -> Change:
    return lambda line: replace(line, density=DensityRequest(settings=(f"inputs={inputs}", f"replicas={replicas}")))


def aggregation(kind: str, size_mm: float = 0.0) -> Change:
    return lambda line: replace(line, aggregation=Aggregation(kind, size_mm))


STORED, RELATIVE, SPECKS = "stored", "relative", "specks"
REST: dict[str, dict[str, Change]] = {
    "patches": {
        "120, half on the contour": sampling(120, 0.5),
        "120, none": sampling(120, 0.0),
    },
    "epochs": {"6": epochs(6), "3": epochs(3)},
    "circuit": {"I=45, R=50": circuit(45, 50), "I=20, R=10": circuit(20, 10)},
    "aggregation": {
        "none": aggregation("none"),
        "Gaussian 2.4 mm": aggregation("gaussian", 2.4),
        "Gaussian 4.8 mm": aggregation("gaussian", 4.8),
        "maximum 6.4 mm": aggregation("maximum", 6.4),
    },
}
QUESTIONS: dict[str, dict[str, dict[str, Change]]] = {
    "mass": {
        "picture": {
            f"{intensity}, {spacing} mm": picture(spacing, intensity)
            for intensity, spacing in ((STORED, 0.4), (RELATIVE, 0.4), (STORED, 0.8))
        },
        **REST,
    },
    "calcification": {
        "picture": {
            f"{intensity}, {spacing} mm": picture(spacing, intensity)
            for intensity, spacing in ((STORED, 0.2), (SPECKS, 0.2))
        },
        **REST,
    },
}
"""Kind of lesion -> question -> candidate -> the change that it makes."""


@dataclass(frozen=True)
class Options:
    """What to choose, and where."""

    kind: tyro.conf.Positional[str]
    """mass or calcification: the line for lesions of this kind."""
    source: str
    """Folder or URL of mini-MIAS."""
    out: str
    """Where corpora, detectors and scores go."""
    model: str = "cae"
    workers: Workers = Workers(1)


def main(options: Options) -> None:
    """Answer the questions, print every figure, write the results."""
    line = Line(Ingest(shard_patches=2048), Schedule(epochs=6))
    sets = {
        "development": catalog.configure("datasets", "mias", {"source": options.source}),
        "pasted": catalog.configure("datasets", "pasted", {"source": options.source}),
    }
    asked = []
    with connected(workers=options.workers) as pool:
        for question, candidates in QUESTIONS[options.kind].items():
            lines = {name: change(line) for name, change in candidates.items()}
            figures = {}
            for name, candidate in lines.items():
                print(f"{options.kind}, {question}: {name}", flush=True)
                figures[name] = figure(pool, candidate, options, sets)
            standing = chosen({name: found["figure"] for name, found in figures.items()})
            line = lines[standing]
            asked.append({"question": question, "candidates": figures, "chosen": standing})
    found = {"kind": options.kind, "model": options.model, "margin": MARGIN, "questions": asked, "line": asdict(line)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"choose_{options.kind}.json").write_text(json.dumps(found, indent=2, default=str) + "\n")


def chosen(figures: Mapping[str, float]) -> str:
    """The first candidate, unless the best one beats it by more than the margin."""
    first, best = next(iter(figures)), max(figures, key=lambda name: figures[name])
    return best if figures[best] > figures[first] + MARGIN else first


def figure(pool: Pool, line: Line, options: Options, sets: Mapping[str, Images]) -> dict[str, float]:
    """The figures of a line's likelihood on both sets, and their mean."""
    detector = aggregated(learned(pool, line, options, sets["development"]), line.aggregation)
    found = {}
    for name, dataset in sets.items():
        split = "development" if name == "development" else "test"  # where lesions pasted into healthy patients stand
        images = scored(pool, detector, dataset, split, storage.join(options.out, "scores", name))
        places = metrics.pool(images, options.kind)
        found[f"{name} pixel AUC"] = metrics.auroc(places.scores, places.anomalous)
        found[f"{name} image-wise AUC"] = mean(metrics.image_wise_auc(images, options.kind).values())
    found["figure"] = mean(found.values())
    print(json.dumps(found), flush=True)
    return found


def learned(pool: Pool, line: Line, options: Options, dataset: Images) -> Detector:
    """The line's model and circuit, trained as a recipe trains them."""
    at = partial(storage.join, storage.absolute(options.out))
    corpus = write_corpus(
        pool, "mias", options.source, dataset, line.ingest, at(f"corpus-{fingerprint(asdict(line.ingest))}")
    )
    name = fingerprint([corpus.manifest["content"], asdict(line.schedule)])
    request = TrainRequest(options.model, schedule=line.schedule)
    trained = train_detector(pool, "model", corpus, request, at(f"model-{name}"))
    name = fingerprint([name, line.density])
    return fit_detector(pool, "spn", corpus, trained, line.density, at(f"spn-{name}"))


def scored(pool: Pool, detector: Detector, dataset: Images, split: str, url: str) -> Sequence[Scored]:
    """The split's images under the detector."""
    exams = exams_of(dataset, split)
    images, _ = score(pool, [detector], dataset, exams, STEP_MM, url, f"{split} images")
    return [
        Scored(
            i.exam.exam_id, i.exam.patient_id, i.exam.anomalous, i.scores[detector.name], i.tissue, i.truth, i.step_mm
        )
        for i in images
    ]


if __name__ == "__main__":
    keep_private()
    main(tyro.cli(Options))
