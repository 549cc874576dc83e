"""The stages of the main job, from URL to URL: what a subcommand, a job script and a recipe call.

A stage whose result is there and was made of the same things is not run again: every result carries the
fingerprint of what it was made of.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rayad import catalog, provenance, storage
from rayad.datasets.exam import Exam, Images
from rayad.datasets.splits import assign
from rayad.density.em import EM
from rayad.errors import DatasetError, OptionError
from rayad.fit import Schedule
from rayad.imaging.mammogram import Preprocessing
from rayad.on_ray.density import fit_density
from rayad.on_ray.ingest import ingest
from rayad.on_ray.resources import Workers
from rayad.on_ray.score import ScoredImage, score_exams
from rayad.on_ray.train import train
from rayad.patches.corpus import Corpus, Ingest, fingerprint
from rayad.scoring import detector as bundle
from rayad.scoring.calibrate import calibrate
from rayad.scoring.combine import Aggregation
from rayad.scoring.detector import Detector


def write_corpus(name: str, source: str, dataset: Images, settings: Ingest, url: str) -> Corpus:
    """Images to patches."""
    ingest(dataset, url, settings, {"dataset": name, "source": source, "versions": provenance.versions()})
    return Corpus.open(url)


def train_detector(
    name: str, corpus: Corpus, model: str, config: Any, schedule: Schedule, workers: Workers, url: str
) -> Detector:
    """Patches to a detector that scores by reconstruction."""
    request = fingerprint(["train", corpus.manifest["content"], model, config, schedule])
    done = _finished(url, request)
    if done is not None:
        return done
    checkpoints = storage.join(url, f"training-{request}")
    part = train(corpus.url, model, config, schedule, workers, checkpoints)
    trained = Detector(
        name, "reconstruction", _preprocessing(corpus), model=part, provenance=_origin(corpus, request, schedule)
    )
    bundle.save(trained, url)
    storage.remove(checkpoints)
    return trained


def fit_detector(
    name: str, corpus: Corpus, trained: Detector, density: str, config: Any, em: EM, workers: Workers, url: str
) -> Detector:
    """A trained detector's latents to a detector that scores by likelihood."""
    if trained.model is None:
        raise OptionError(f"detector {trained.name!r} has no model whose latents a density could be fitted to")
    request = fingerprint(["density", trained.provenance["made_of"], density, config, em])
    done = _finished(url, request)
    if done is not None:
        return done
    latents = storage.join(url, f"latents-{request}")
    part, history = fit_density(corpus.url, trained.model, density, config, em, workers, latents)
    origin = _origin(corpus, request, em) | {"density_training": history}
    fitted = Detector(name, "likelihood", trained.preprocessing, model=trained.model, density=part, provenance=origin)
    bundle.save(fitted, url)
    storage.remove(latents)
    return fitted


def floor_detector(name: str, score: str, corpus: Corpus, url: str) -> Detector:
    """A detector that learns nothing: what a trained one has to beat."""
    request = fingerprint(["floor", score, _preprocessing(corpus)])
    done = _finished(url, request)
    return done or Detector(name, score, _preprocessing(corpus), provenance=_origin(corpus, request, None))


def aggregated(detector: Detector, aggregation: Aggregation) -> Detector:
    """The detector with this aggregation of its scores; another one voids its calibration."""
    if aggregation == detector.aggregation:
        return detector
    return replace(detector, aggregation=aggregation, calibration=None)


def calibrate_detectors(
    detectors: Sequence[Detector], dataset: Images, step_mm: float, url: str, max_failures: int = 0
) -> list[Detector]:
    """Give detectors that share their preprocessing their p-values, from healthy patients that serve nothing else.

    Args:
        step_mm: distance of the scored places.
        url: folder for the scores.
    """
    exams = exams_of(dataset, "calibration")
    wanted = [fingerprint([identity(d), step_mm, [e.exam_id for e in exams]]) for d in detectors]
    if all(d.calibration and d.provenance["calibrated_on"] == w for d, w in zip(detectors, wanted, strict=True)):
        return list(detectors)
    scored = score(detectors, dataset, exams, step_mm, url, "calibration", max_failures)
    result = []
    for one, made_of in zip(detectors, wanted, strict=True):
        patients = defaultdict(list)
        for image in scored:
            patients[image.exam.patient_id].append(image.scores[one.name])
        result.append(bundle.calibrated(one, calibrate(patients), calibrated_on=made_of, step_mm=step_mm))
    return result


def identity(detector: Detector) -> str:
    """Equal for detectors that give equal scores."""
    return fingerprint([detector.name, detector.score, detector.provenance["made_of"], detector.aggregation])


def score(
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
    step = detectors[0].preprocessing.step(step_mm)
    made_of = fingerprint([step, [identity(d) for d in detectors]])
    scored, failures = score_exams(dataset, exams, detectors, step, storage.join(url, made_of), label)
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
    found = bundle.load(url)
    return found if found.provenance.get("made_of") == request else None


def _origin(corpus: Corpus, request: str, settings: Any) -> dict[str, Any]:
    return {
        "made_of": request,
        "corpus": corpus.manifest["content"],
        "dataset": corpus.manifest["dataset"],
        "settings": repr(settings),
        "seed": getattr(settings, "seed", 0),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }


def _preprocessing(corpus: Corpus) -> Preprocessing:
    return Preprocessing(**corpus.manifest["parameters"]["preprocessing"])
