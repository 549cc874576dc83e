"""One trial of a sweep: which configurations are varied, what a trial learns from, and how good it is.

- Fields of a density (and of EM): the latents of a trained encoder are encoded once and shared; what counts is the
  validation likelihood in bits a dimension, over healthy patients.
- Fields of an image model (and of its schedule): likelihoods of latents do not compare encoders, so what counts is what
  a pixel of healthy validation patches costs (rayad/scoring/description.py).

No label enters.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from rayad import fit as learning
from rayad import search
from rayad.density import em
from rayad.errors import OptionError
from rayad.fingerprint import fingerprint
from rayad.patches.corpus import LEARNING_SPLITS, Corpus
from rayad.pipeline.detectors import require_fits
from rayad.pipeline.encode import encode
from rayad.pipeline.fit_density import FittedRows, density_config
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.train import model_config, order_of, pixels, reader, validation_batches
from rayad.pool import Pool
from rayad.scoring.description import Describes, bits_a_pixel
from rayad.scoring.scores import Part

NOISE_BATCHES = 32
"""Batches of training patches that a decoder's noise is fitted to."""


@dataclass(frozen=True)
class Task:
    """What is searched: everything that a trial needs besides its values and its data."""

    parts: dict[str, Any]
    """Configurations: density and em, or model and schedule."""
    space: dict[str, search.Dimension]
    corpus: str
    objective: str
    """In words, with its unit; lower is better."""

    @property
    def epochs(self) -> int:
        """Of a trial, at most."""
        return (self.parts["em"] if "em" in self.parts else self.parts["schedule"]).epochs


@dataclass(frozen=True)
class SharedLatents:
    """The latents that trials of a density share; read-only, since they lie in the object store."""

    train: np.ndarray
    validation: np.ndarray
    classes: np.ndarray
    """The class of every training row, -1 where it is not known; of no length without classes."""
    names: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A hash of all of it: another encoder has other latents."""
        arrays = (self.train, self.validation, self.classes)
        parts = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
        return fingerprint([parts, self.names])


Report = Callable[[int, float], None]
"""report(epoch, value): the best value so far."""


def of_density(
    pool: Pool, model: Part, request: DensityRequest, texts: tuple[str, ...], corpus_url: str, latents_url: str
) -> tuple[Task, SharedLatents]:
    """A sweep over fields of a density and of EM at a fixed encoder, whose latents are encoded once."""
    corpus = Corpus.open(corpus_url)
    parts = {"density": density_config(request, model), "em": request.em}
    space = search.parse(texts, parts)
    encode(pool, corpus, model, latents_url)
    rows = FittedRows(corpus, latents_url, request)
    train, validation = (rows.variables(split).numpy() for split in LEARNING_SPLITS)
    search.check(parts, space, lambda parts: parts["density"].build(train.shape[1]))
    objective = f"bits a dimension of {len(validation):,} healthy validation patches"
    return Task(parts, space, corpus_url, objective), SharedLatents(train, validation, *rows.classes("train"))


def of_model(request: TrainRequest, texts: tuple[str, ...], corpus_url: str) -> tuple[Task, None]:
    """A sweep over fields of an image model and of its schedule."""
    corpus, schedule = Corpus.open(corpus_url), request.schedule
    config = model_config(request, corpus)
    parts = {"model": config, "schedule": schedule}
    space = search.parse(texts, parts)

    def build(parts: search.Parts) -> None:
        require_fits(request.model, parts["model"], corpus)
        parts["model"].build()

    search.check(parts, space, build)
    if not isinstance(config.build(), Describes):
        raise OptionError("a sweep over an image model needs one with a likelihood of patches: bvae, conditional_vae")
    order_of(corpus, schedule)
    return Task(parts, space, corpus_url, "bits a pixel of healthy validation patches, of 16"), None


def learn(
    task: Task,
    data: SharedLatents | None,
    values: Mapping[str, Any],
    seed: int | None,
    report: Report,
    device: str = "cpu",
) -> None:
    """One trial: learn with these values.

    Args:
        seed: instead of the configuration's.
        device: of torch, to learn on.
    """
    torch.set_num_threads(1)
    parts = search.applied(task.parts, task.space, values)
    if seed is not None:
        parts = {name: replace(part, seed=seed) if hasattr(part, "seed") else part for name, part in parts.items()}
    if data is None:
        _learn_model(task, parts, report, device)
    else:
        _learn_density(data, parts, report, device)


def _learn_density(data: SharedLatents, parts: dict[str, Any], report: Report, device: str) -> None:
    train, validation, classes = (
        torch.tensor(array).to(device) for array in (data.train, data.validation, data.classes)
    )
    density, best = parts["density"].build(train.shape[1]).to(device), float("inf")
    labels = classes if data.names and parts["density"].roots == len(data.names) else None

    def told(row: learning.Row) -> None:
        nonlocal best
        best = min(best, row["validation"])
        report(int(row["epoch"]), best)

    em.fit(density, train, validation, parts["em"], labels=labels, report=told)


def _learn_model(task: Task, parts: dict[str, Any], report: Report, device: str) -> None:
    corpus, schedule, best = Corpus.open(task.corpus), parts["schedule"], float("inf")
    torch.manual_seed(schedule.seed)
    model = parts["model"].build().to(device)
    read, order = reader(corpus, model), order_of(corpus, schedule)
    validation = validation_batches(read, corpus, schedule.batch, 0, 1)

    def train(epoch: int) -> Iterator[torch.Tensor]:
        return (pixels(batch) for batch in order.batches(read, epoch))

    def told(row: learning.Row) -> None:
        nonlocal best
        if "epoch" in row:
            training = model.training
            best = min(best, bits_a_pixel(model.eval(), lambda: islice(train(1), NOISE_BATCHES), validation))
            model.train(training)
            report(int(row["epoch"]), best)

    learning.fit(model, train, validation, schedule, report=told)
