"""Detectors as stages hand them on: what they were made of, where they lie, and what can be asked of them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rayad import catalog, provenance, storage
from rayad.datasets.exam import Exam, Images, name_of
from rayad.datasets.exam import origin_of as images_of
from rayad.datasets.splits import LABEL_FREE, USUAL, Division, division_of
from rayad.errors import OptionError
from rayad.fingerprint import fingerprint
from rayad.imaging.picture import Preprocessing, from_description
from rayad.models._blocks import PATCH_PX
from rayad.patches.corpus import Corpus
from rayad.scoring import bundle
from rayad.scoring.combine import Aggregation
from rayad.scoring.detector import Detector, score_named
from rayad.scoring.scores import Floor, LatentScore, Part


def identity(detector: Detector) -> str:
    """Equal for detectors that give equal scores."""
    return fingerprint([detector.name, detector.score.name, detector.origin("made_of"), detector.aggregation])


def finished(url: str, request: str) -> Detector | None:
    """The detector at the URL if it was made of the same things."""
    if not storage.exists(storage.join(url, "detector.json")):
        return None
    stored = bundle.load(url)
    return stored if stored.provenance.get("made_of") == request else None


def floor_detector(name: str, score: str, corpus: Corpus) -> Detector:
    """A detector that learns nothing: what a trained one has to beat."""
    floor, preprocessing = Floor(score, corpus.patch_px), preprocessing_of(corpus)
    request = fingerprint(["floor", score, preprocessing, corpus.patch_px])
    return Detector(name, floor, preprocessing, provenance=origin_of(corpus, request, None))


def asked(detector: Detector, name: str, score: str) -> Detector:
    """The trained detector under another name, asked for another of its scores."""
    request = fingerprint(["asked", detector.origin("made_of"), score])
    provenance = detector.provenance | {"made_of": request}
    context = detector.score.context if isinstance(detector.score, LatentScore) else ()
    value = score_named(
        score, detector.model, detector.density, context, detector.members, detector.patch_px, detector.teaching
    )
    return replace(detector, name=name, score=value, adjustment=None, calibration=None, provenance=provenance)


def aggregated(detector: Detector, aggregation: Aggregation) -> Detector:
    """The detector with this aggregation of its scores; another one voids its adjustment and its calibration."""
    if aggregation == detector.aggregation:
        return detector
    return replace(detector, aggregation=aggregation, adjustment=None, calibration=None)


def saved(detector: Detector, url: str) -> Detector:
    """What is at the URL, if that is this detector, calibrated; else the detector."""
    if not storage.exists(storage.join(url, "detector.json")):
        return detector
    stored = bundle.load(url)
    return stored if identity(stored) == identity(detector) else detector


def require_fits(name: str, config: Any, corpus: Corpus) -> None:
    """OptionError unless a model of this configuration is of patches such as the corpus has."""
    channels, patch_px = getattr(config, "channels", 1), getattr(config, "patch_px", PATCH_PX)
    if channels != corpus.channels:
        raise OptionError(
            f"model {name} is of images with {channels} channels, but the picture has {corpus.channels}: {corpus.url}"
        )
    if patch_px != corpus.patch_px:
        raise OptionError(
            f"model {name} is of patches of {patch_px} px, but those of the corpus have {corpus.patch_px}: {corpus.url}"
        )


def model_of(trained: Detector) -> Part:
    """A detector's model; OptionError where it has none."""
    if trained.model is None:
        raise OptionError(f"detector {trained.name!r} has no model whose latents a density could be fitted to")
    return trained.model


def origin_of(corpus: Corpus, request: str, settings: Any) -> dict[str, Any]:
    return {
        "made_of": request,
        "corpus": corpus.manifest["content"],
        "dataset": corpus.manifest["dataset"],
        "learned_from": {corpus.manifest["dataset"]: corpus.manifest.get("shares", asdict(USUAL))},
        "mixed": corpus.manifest["parameters"].get("mixed", 0.0),
        "settings": repr(settings),
        "seed": getattr(settings, "seed", 0),
        "machine": provenance.machine(),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }


def minutes_since(began: float) -> float:
    return (time.perf_counter() - began) / 60


def preprocessing_of(corpus: Corpus) -> Preprocessing:
    return from_description(corpus.manifest["parameters"]["preprocessing"])


def inherited(*origins: Mapping[str, Any]) -> dict[str, Any]:
    """What is true of whatever is made of detectors of these origins: the data sets that one learned from and how each
    was divided, the largest share of diseased patients that one learned from, whether the model of one collapsed, and
    whose labels taught one.

    Raises:
        OptionError: one data set was divided in two ways: a patient whom one is tested with may have taught another.
    """
    learned_from: dict[str, Division] = {}
    for name, division in [stated for origin in origins for stated in _divisions(origin).items()]:
        if learned_from.setdefault(name, division) != division:
            one, other = (" ".join(catalog.settings_of(each)) for each in (learned_from[name], division))
            raise OptionError(
                f"the data set {name} was divided by --shares {one} for one part and by --shares {other} for another: "
                "the one may have learned from patients who are held out for the other"
            )
    patients = sorted({str(patient) for origin in origins for patient in origin.get("taught_by", ())})
    return {
        "learned_from": {name: asdict(division) for name, division in learned_from.items()},
        "mixed": max(origin.get("mixed", 0.0) for origin in origins),
        "collapsed": any(origin.get("collapsed", False) for origin in origins),
    } | ({"taught_by": patients} if patients else {})


def patient_hash(patient_id: str) -> str:
    """How the provenance of a taught detector names a patient whose labels it learned from."""
    return fingerprint(["patient", patient_id])


def not_taught_by(detectors: Sequence[Detector], exams: Sequence[Exam]) -> tuple[list[Exam], str]:
    """The exams of patients whose labels taught none of the detectors, and a sentence that counts the others.

    Raises:
        OptionError: all patients of these exams did.
    """
    taught = {detector.name: set(map(str, detector.provenance.get("taught_by", ()))) for detector in detectors}
    hashes = {patient: patient_hash(patient) for patient in {exam.patient_id for exam in exams}}
    teachers = {patient for patient, named in hashes.items() if any(named in by for by in taught.values())}
    if not teachers:
        return list(exams), ""
    names = [name for name, by in taught.items() if by & {hashes[patient] for patient in teachers}]
    left = [exam for exam in exams if exam.patient_id not in teachers]
    images, patients = len(exams) - len(left), len(teachers)
    sentence = f"{images} images of {patients} patients are left out: their labels taught {', '.join(names)}"
    if not left:
        raise OptionError(f"{sentence}; no other patient is there")
    return left, sentence


def alike(detectors: Sequence[Detector]) -> list[list[Detector]]:
    """Those that share their preprocessing together."""
    pictures = dict.fromkeys(detector.preprocessing for detector in detectors)
    return [[d for d in detectors if d.preprocessing == picture] for picture in pictures]


def require_unseen(detectors: Sequence[Detector], split: str) -> None:
    """OptionError where one learned from diseased patients that are for choices, and these are judged."""
    for detector in detectors:
        if split in ("development", LABEL_FREE) and detector.provenance.get("mixed"):
            raise OptionError(
                f"detector {detector.name!r} learned from patients of the development split, which were mixed in; "
                "it can be judged on the test split"
            )


def _divisions(origin: Mapping[str, Any]) -> dict[str, Division]:
    """Data set -> how it was divided for what has this origin; a detector of an older rayad names one data set."""
    before = {origin["dataset"]: origin.get("shares")} if "dataset" in origin else {}
    stated = origin.get("learned_from", before)
    return {
        name: catalog.restored(Division, shares if isinstance(shares, dict) else {})
        for name, shares in (stated.items() if isinstance(stated, dict) else ())  # a stranger may have written it
    }


def require_shares(detectors: Sequence[Detector], dataset: Images) -> None:
    """OptionError where one learned from this data set divided otherwise: it may have learned from these patients."""
    for detector in detectors:
        learned_with = _divisions(detector.provenance).get(name_of(images_of(dataset)))
        if learned_with is not None and learned_with != division_of(dataset):
            shares = " ".join(catalog.settings_of(learned_with))
            raise OptionError(
                f"detector {detector.name!r} learned from the data set divided by --shares {shares}; give the same, or "
                "--dataset exams with the list in its corpus"
            )


def require_names(detectors: Sequence[Detector]) -> None:
    """OptionError where two have one name: scores are kept and reported by name."""
    names = [detector.name for detector in detectors]
    if twice := [name for name in names if names.count(name) > 1]:
        raise OptionError(f"two detectors are called {twice[0]!r}; take them one by one, or give one another name")
