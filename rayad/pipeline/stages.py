"""The stages of the main job, from URL to URL: what a subcommand, a job script and a recipe call.

A stage whose result is there and was made of the same things is not run again: every result carries the
fingerprint of what it was made of.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any

from rayad import catalog, provenance, storage
from rayad.datasets.content import contents
from rayad.datasets.exam import Exam, Images
from rayad.datasets.splits import assign
from rayad.density.em import EM
from rayad.errors import DatasetError, OptionError
from rayad.fingerprint import fingerprint
from rayad.fit import Schedule
from rayad.imaging.picture import Preprocessing, from_description, step_px
from rayad.patches.corpus import Corpus, Ingest
from rayad.pipeline.fit_density import Fit, fit_density
from rayad.pipeline.ingest import ingest
from rayad.pipeline.requests import NOTHING, Strips
from rayad.pipeline.score import ScoredImage, identity, score_exams
from rayad.pipeline.train import train
from rayad.pool import Pool
from rayad.recipes import Density
from rayad.scoring import bundle
from rayad.scoring.calibrate import calibrate
from rayad.scoring.combine import RULES, Aggregation
from rayad.scoring.detector import Detector, Part, scores_of
from rayad.terminal import say


def write_corpus(pool: Pool, name: str, source: str, dataset: Images, settings: Ingest, url: str) -> Corpus:
    """Images to patches."""
    ingest(pool, dataset, url, settings, {"dataset": name, "source": source, "versions": provenance.versions()})
    return Corpus.open(url)


def train_detector(
    pool: Pool,
    name: str,
    corpus: Corpus,
    model: str,
    config: Any,
    schedule: Schedule,
    url: str,
    watch: Strips = NOTHING,
) -> Detector:
    """Patches to a detector that scores by reconstruction, or whatever the model's first score is.

    Args:
        watch: pictures of what is learned, below the detector's URL.
    """
    request = fingerprint(["train", corpus.manifest["content"], model, config, schedule])
    done = _finished(url, request)
    if done is not None:
        return done
    corpus.require_disjoint()
    began = time.perf_counter()
    checkpoints = storage.join(url, f"training-{request}")
    part, faults = train(pool, corpus.url, model, config, schedule, checkpoints, watch)
    spent = {"train_minutes": _minutes(began), "faults": [asdict(fault) for fault in faults]}
    origin = _origin(corpus, request, schedule) | spent
    trained = Detector(name, scores_of(part)[0], _preprocessing(corpus), model=part, provenance=origin)
    bundle.save(trained, url)
    storage.remove(checkpoints)
    return trained


def fit_detector(
    pool: Pool,
    name: str,
    corpus: Corpus,
    trained: Detector,
    density: Density,
    em: EM,
    url: str,
    latents_url: str = "",
) -> Detector:
    """A trained detector's latents to a detector that scores them.

    Args:
        latents_url: folder for the latents, which further densities of the same model use again; "": none keeps them.
    """
    model = model_of(trained)
    config = density_config(density, model)
    settings = [density.name, config, density.context, density.smooth, density.classes, em]
    request = fingerprint(["density", trained.origin("made_of"), corpus.manifest["content"], *settings])
    done = _finished(url, request)
    if done is not None:
        return done
    began = time.perf_counter()
    latents = latents_of(trained, corpus, latents_url or url)
    fit = Fit(density.name, config, em, density.context, density.smooth, density.classes)
    part, history = fit_density(pool, corpus.url, model, fit, latents)
    for warning in history.get("warnings", ()):
        say(f"rayad: {name}: {warning}", sys.stderr)
    minutes = trained.provenance.get("train_minutes", 0.0) + _minutes(began)
    faults = [*trained.provenance.get("faults", []), *history.pop("faults", [])]
    history.pop("rows", None)
    origin = _origin(corpus, request, em) | {"density_training": history, "train_minutes": minutes, "faults": faults}
    score = "novelty" if hasattr(part.module, "novelty") else "context" if density.context else "likelihood"
    fitted = replace(
        trained, name=name, score=score, density=part, context=density.context, provenance=origin, calibration=None
    )
    bundle.save(fitted, url)
    if not latents_url:
        storage.remove(latents)
    return fitted


def latents_of(trained: Detector, corpus: Corpus, url: str) -> str:
    """The folder below a URL for the latents that a trained detector's model has of a corpus."""
    made_of = fingerprint([trained.origin("made_of"), corpus.manifest["content"]])
    return storage.join(url, f"latents-{made_of}")


def model_of(trained: Detector) -> Part:
    """A detector's model; OptionError where it has none."""
    if trained.model is None:
        raise OptionError(f"detector {trained.name!r} has no model whose latents a density could be fitted to")
    return trained.model


def density_config(density: Density, model: Part) -> Any:
    """The density's configuration; where the latents are codes, it is told how many there are of each."""
    states: tuple[int, ...] = getattr(model.module, "states", ())
    each = states * (model.module.latents if len(states) == 1 else 1)
    states_of = {"states": (*each, *[0] * len(density.context))} if states else {}
    return catalog.configure("density", density.name, density.fields, **states_of)


def asked(detector: Detector, name: str, score: str) -> Detector:
    """The trained detector under another name, asked for another of its scores."""
    request = fingerprint(["asked", detector.origin("made_of"), score])
    provenance = detector.provenance | {"made_of": request}
    return replace(detector, name=name, score=score, calibration=None, provenance=provenance)


def combined(
    pool: Pool, name: str, rule: str, members: Sequence[Detector], dataset: Images, step_mm: float, url: str
) -> Detector:
    """A detector whose score combines those of others.

    How rare a member's score is, is learned from the validation patients: the calibration patients serve nothing but
    the p-values of what comes out.
    """
    if rule not in RULES:
        raise OptionError(f"no rule {rule!r}; detectors are combined by {', '.join(RULES)}")
    standard: list[Detector] = []
    for _, group in groupby(members, key=lambda d: d.preprocessing):
        bare = [replace(d, calibration=None) for d in group]
        standard += calibrate_detectors(pool, bare, dataset, step_mm, url, split="validation")
    origin = {k: members[0].origin(k) for k in ("corpus", "dataset", "seed", "commit", "versions", "machine")}
    request = fingerprint([rule, *[[identity(d), d.origin("calibrated_on")] for d in standard]])
    minutes = sum(d.provenance.get("train_minutes", 0.0) for d in members)
    origin |= {"made_of": request, "settings": rule, "train_minutes": minutes}
    return Detector(name, rule, members[0].preprocessing, provenance=origin, members=tuple(standard))


def floor_detector(name: str, score: str, corpus: Corpus) -> Detector:
    """A detector that learns nothing: what a trained one has to beat."""
    request = fingerprint(["floor", score, _preprocessing(corpus)])
    return Detector(name, score, _preprocessing(corpus), provenance=_origin(corpus, request, None))


def saved(detector: Detector, url: str) -> Detector:
    """What is at the URL, if that is this detector, calibrated; else the detector."""
    if not storage.exists(storage.join(url, "detector.json")):
        return detector
    stored = bundle.load(url)
    return stored if identity(stored) == identity(detector) else detector


def aggregated(detector: Detector, aggregation: Aggregation) -> Detector:
    """The detector with this aggregation of its scores; another one voids its calibration."""
    if aggregation == detector.aggregation:
        return detector
    return replace(detector, aggregation=aggregation, calibration=None)


def calibrate_detectors(
    pool: Pool,
    detectors: Sequence[Detector],
    dataset: Images,
    step_mm: float,
    url: str,
    max_failures: int = 0,
    split: str = "calibration",
) -> list[Detector]:
    """Give detectors that share their preprocessing their p-values, from healthy patients that serve nothing else.

    Args:
        step_mm: distance of the scored places.
        url: folder for the scores.
        split: whose images; another than "calibration" is for scores that are combined, not for p-values.
    """
    for one in detectors:
        for member in one.members:
            member.step(step_mm)
    exams = exams_of(dataset, split)
    exam_contents = contents(dataset, exams)
    requests = [fingerprint([identity(d), step_mm, exam_contents]) for d in detectors]
    if all(d.calibration and d.provenance.get("calibrated_on") == w for d, w in zip(detectors, requests, strict=True)):
        return list(detectors)
    scored = score(pool, detectors, dataset, exams, step_mm, url, split, max_failures)
    result = []
    for one, made_of in zip(detectors, requests, strict=True):
        patients = defaultdict(list)
        for image in scored:
            patients[image.exam.patient_id].append(image.scores[one.name])
        result.append(one.calibrated(calibrate(patients), calibrated_on=made_of, step_mm=step_mm))
    return result


def score(
    pool: Pool,
    detectors: Sequence[Detector],
    dataset: Images,
    exams: Sequence[Exam],
    step_mm: float,
    url: str,
    label: str,
    max_failures: int = 0,
) -> list[ScoredImage]:
    """Score images, and refuse to go on with too few of them.

    Raises:
        DatasetError: more images failed than ``max_failures``; names the first and its reason.
    """
    step = step_px(detectors[0].preprocessing, step_mm)
    scored, failures = score_exams(pool, dataset, exams, detectors, step, url, label)
    if len(failures) > max_failures:
        first = failures[0]
        raise DatasetError(
            f"{len(failures)} of {len(exams)} images could not be scored, more than {max_failures}: "
            f"{first['exam_id']}: {first['reason']}"
        )
    return scored


def exams_of(dataset: Images, split: str) -> list[Exam]:
    """The exams of a split; DatasetError if there are none."""
    exams = dataset.exams()
    assigned = assign(exams)
    chosen = [e for e in exams if assigned[e.exam_id] == split]
    if not chosen:
        raise DatasetError(f"no image of {len(exams)} is in the {split} split")
    return chosen


def open_dataset(name: str, source: str, settings: Sequence[str] = ()) -> Images:
    """The data set of this name at this source, with NAME=VALUE settings."""
    return catalog.configure("datasets", name, [f"source={source}", *settings])


def _finished(url: str, request: str) -> Detector | None:
    """The detector at the URL if it was made of the same things."""
    if not storage.exists(storage.join(url, "detector.json")):
        return None
    stored = bundle.load(url)
    return stored if stored.provenance.get("made_of") == request else None


def _origin(corpus: Corpus, request: str, settings: Any) -> dict[str, Any]:
    return {
        "made_of": request,
        "corpus": corpus.manifest["content"],
        "dataset": corpus.manifest["dataset"],
        "settings": repr(settings),
        "seed": getattr(settings, "seed", 0),
        "machine": provenance.machine(),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }


def _minutes(began: float) -> float:
    return (time.perf_counter() - began) / 60


def _preprocessing(corpus: Corpus) -> Preprocessing:
    return from_description(corpus.manifest["parameters"]["preprocessing"])
