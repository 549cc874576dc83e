"""What a second worker brings, and what Ray Train costs.

    python benchmarks/scaling.py --corpus corpus --dataset mias --source mini-mias --out scaling

One thread a worker, as many logical CPUs as workers. Each measurement is of the work alone: the start of a cluster and
of its processes, 10 to 20 s, is not in it. Everything is run in turn, several times; medians count.

train, em         epochs after the first, from what the workers themselves tell: samples and seconds, and of these the
                  seconds that they waited for data and for each other
encode, evaluate  patches and images, on a cluster of one and of two CPUs
bare              the same training in this process, without Ray: what Ray Train costs at one worker
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import ray
import torch
import tyro

from rayad import catalog, provenance, storage
from rayad.checkpoints import CheckpointFolder
from rayad.density.em import EM
from rayad.fit import Schedule, fit
from rayad.on_ray.cluster import quiet_data
from rayad.on_ray.pool import OnRay
from rayad.patches.corpus import Corpus
from rayad.pipeline.detectors import floor_detector
from rayad.pipeline.encode import encode
from rayad.pipeline.fit_density import fit_density
from rayad.pipeline.requests import DensityRequest
from rayad.pipeline.score import score_exams
from rayad.pipeline.train import order_of, pixels, train, validation_batches
from rayad.pool import Workers
from rayad.private import keep_private
from rayad.progress import Row
from rayad.scoring.detector import Detector
from rayad.scoring.scores import ModelScore, Part

RESULTS = Path(__file__).parent / "results" / "scaling.json"
STEP_PX = 8


@dataclass(frozen=True)
class Options:
    """What is worked on."""

    corpus: str
    out: str
    """Local folder; what is made there is removed."""
    dataset: str = "mias"
    source: str = ""
    images: int = 40
    """That are scored."""
    model: str = "cae"
    epochs: int = 4
    rounds: int = 3
    works: tuple[str, ...] = ("train", "em", "encode", "evaluate")
    """What is measured; other figures stay as they are."""
    label: str = ""
    """Set before the name of each figure: of another corpus."""


@contextmanager
def own_ray(cpus: int) -> Iterator[None]:
    """A cluster of so many logical CPUs."""
    ray.init(
        address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=300_000_000, log_to_driver=False
    )
    quiet_data()
    try:
        yield
    finally:
        ray.shutdown()


def told(rows: Sequence[Row]) -> dict[str, float]:
    """Samples a second of one worker and the shares of its time, over the epochs after the first."""
    later = [row for row in rows if row.get("epoch", 0) > 1]
    seconds = sum(row["seconds"] for row in later)
    shares = {name: sum(row.get(f"seconds_{name}", 0.0) for row in later) / seconds for name in ("data", "agreement")}
    return {"samples_per_s": sum(row["samples"] for row in later) / seconds} | shares


def trained(corpus: Corpus, options: Options, workers: int) -> tuple[Part, dict[str, float]]:
    """Train on Ray; what the first worker told."""
    schedule = Schedule(epochs=options.epochs, patience=options.epochs)
    with tempfile.TemporaryDirectory(dir=options.out) as folder, own_ray(workers + 1):  # one leads
        pool, config = OnRay(Workers(workers)), catalog.configure("models", options.model)
        part, *_ = train(pool, corpus.url, options.model, config, schedule, folder)
        state = CheckpointFolder(folder).load()
    assert state is not None
    return part, told(state.scalars["rows"])


def bare(corpus: Corpus, options: Options) -> dict[str, float]:
    """The same training in this process."""
    schedule = Schedule(epochs=options.epochs, patience=options.epochs)
    torch.manual_seed(schedule.seed)
    order, rows = order_of(corpus, schedule), []
    fit(
        catalog.configure("models", options.model).build(),
        lambda epoch: (pixels(batch) for batch in order.batches(corpus.read, epoch)),
        validation_batches(corpus.read, corpus, schedule.batch, 0, 1),
        schedule,
        report=rows.append,
    )
    return told(rows)


def learned(corpus: Corpus, options: Options, part: Part, workers: int) -> dict[str, float]:
    """Expectation-maximization on the latents, which are there."""
    em = EM(epochs=options.epochs, patience=options.epochs)
    request = DensityRequest(em=em)
    latents = f"{options.out}/latents"
    with own_ray(workers + 1):
        encode(OnRay(), corpus, part, latents)
        _, said = fit_density(OnRay(Workers(workers)), corpus.url, part, request, latents)
    return told(said["rows"])


def encoded(corpus: Corpus, options: Options, part: Part, cpus: int) -> dict[str, float]:
    """Patches a second, of a second pass over them: the first started the workers."""
    with own_ray(cpus):
        for name in ("warm", "timed"):
            began = time.perf_counter()
            encode(OnRay(), corpus, part, f"{options.out}/{name}")
            seconds = time.perf_counter() - began
            storage.remove(f"{options.out}/{name}")
    return {"samples_per_s": corpus.manifest["patches"] / seconds}


def scored(options: Options, detector: Detector, cpus: int) -> dict[str, float]:
    """Images a second, of a second pass over them."""
    dataset = catalog.configure("datasets", options.dataset, {"source": options.source})
    exams = dataset.exams()[: options.images]
    with own_ray(cpus):
        for name in ("warm", "timed"):
            began = time.perf_counter()
            score_exams(OnRay(), dataset, exams, [detector], STEP_PX, f"{options.out}/{name}", "images")
            seconds = time.perf_counter() - began
            storage.remove(f"{options.out}/{name}")
    return {"samples_per_s": len(exams) / seconds}


def summary(rounds: Sequence[dict[str, float]], workers: int = 1) -> dict[str, float]:
    """Medians over rounds; samples a second of all workers together."""
    found = {name: median(of[name] for of in rounds) for name in rounds[0]}
    return {name: round(value * (workers if name == "samples_per_s" else 1), 4) for name, value in found.items()}


def main(options: Options) -> None:
    """Measure, print, keep."""
    keep_private()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    corpus = Corpus.open(storage.absolute(options.corpus))
    options = replace(options, out=storage.absolute(options.out), source=storage.absolute(options.source))
    part = Part(options.model, config := catalog.configure("models", options.model), config.build().eval())
    if set(options.works) & {"train", "evaluate"}:  # the speed of the others does not depend on what was learned
        part, _ = trained(corpus, replace(options, epochs=2), 1)
    floor = floor_detector(options.model, "brightness", corpus)
    detector = replace(floor, score=ModelScore(part, "reconstruction"))
    measured: dict[str, Callable[[int], dict[str, float]]] = {
        "train": lambda workers: trained(corpus, options, workers)[1],
        "em": lambda workers: learned(corpus, options, part, workers),
        "encode": lambda workers: encoded(corpus, options, part, workers),
        "evaluate": lambda workers: scored(options, detector, workers),
    }
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        if "train" in options.works:
            found.setdefault("bare 1", []).append(bare(corpus, options))
        for workers in (1, 2):
            for work in options.works:
                found.setdefault(f"{work} {workers}", []).append(measured[work](workers))
    learn = ("train", "em")  # each worker tells its own samples
    rows: dict[str, Any] = {
        name: summary(of, int(name[-1]) if name.startswith(learn) else 1) for name, of in sorted(found.items())
    }
    speed = {name: row["samples_per_s"] for name, row in rows.items()}
    for work in options.works:
        rows[f"efficiency of {work}"] = round(speed[f"{work} 2"] / speed[f"{work} 1"] / 2, 3)
    if "train" in options.works:
        rows["ray_train_of_bare"] = round(speed["train 1"] / speed["bare 1"], 3)
    for name, row in rows.items():
        print(name, json.dumps(row))
    known = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    known |= {f"{options.label} {name}".strip(): row for name, row in rows.items()}
    RESULTS.write_text(json.dumps({"rows": known, "machine": provenance.machine()}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
