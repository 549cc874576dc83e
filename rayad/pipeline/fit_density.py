"""Latents to a detector of latents: by expectation-maximization on N workers whose statistics add, or by one."""

import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from torch import nn

from rayad import catalog, storage
from rayad.checkpoints import CheckpointFolder
from rayad.density.em import fit
from rayad.density.rows import chosen, held
from rayad.errors import FormatError, OptionError
from rayad.fingerprint import fingerprint
from rayad.fit import ALONE, Member, Sync
from rayad.patches.corpus import FULL_SCALE, LEARNING_SPLITS, Corpus
from rayad.pipeline.detectors import finished, inherited, minutes_since, model_of, origin_of
from rayad.pipeline.encode import encode, read_latents
from rayad.pipeline.requests import DensityRequest
from rayad.pool import Fault, Pool
from rayad.progress import State
from rayad.scoring import bundle
from rayad.scoring.detector import Detector
from rayad.scoring.scores import LatentScore, Part
from rayad.tensors import Latents
from rayad.terminal import say

SMOOTH = 1 / 3
"""Share of the training patches, those of the smallest standard deviation, that a background is fitted to."""


@runtime_checkable
class Learner(Protocol):
    """A detector of latents that learns by itself, in one process; an nn.Module besides."""

    def learn(self, train: Latents, validation: Latents, seed: int) -> dict[str, Any]: ...

    def state_dict(self) -> dict[str, Any]: ...


def fit_density(
    pool: Pool, corpus_url: str, model: Part, request: DensityRequest, url: str
) -> tuple[Part, dict[str, Any]]:
    """Fit a detector of latents to a corpus's healthy patches; interrupted, EM goes on from the last epoch.

    Args:
        url: folder for the latents; they are encoded once and kept for other densities of the same model.

    Returns:
        The density, and what is worth knowing of its training: epochs, their rows and the best, warnings, faults.

    Raises:
        OptionError: unknown density, or settings it refuses.
        TrainingError: latents that are not numbers, or too few.
        FormatError: the corpus is of an older rayad and lacks a column of the context.
    """
    config, corpus = density_config(request, model), Corpus.open(corpus_url)
    encode(pool, corpus, model, url)
    variables = model.module.latents + len(request.context)
    module: nn.Module = config.build(variables)
    result = storage.join(url, fingerprint([config, asdict(request)]))
    task = {"corpus": corpus_url, "latents": url, "request": request, "config": config, "result": result}
    faults: list[Fault] = []
    if isinstance(module, Learner):
        list(pool.map(_learn_alone, [task], request.density))
    else:
        task["checkpoints"] = storage.join(result, "learning")
        faults = pool.learn(_loop, task, storage.join(url, "ray"), request.em.epochs, request.density)
        storage.remove(task["checkpoints"])
    state = CheckpointFolder(result).load()
    assert state is not None  # rank 0 or the only one saved it
    module.load_state_dict(state.tensors)
    history = state.scalars | {"faults": [asdict(fault) for fault in faults]}
    return Part(request.density, config, module.eval(), variables), history


def fit_detector(
    pool: Pool,
    name: str,
    corpus: Corpus,
    trained: Detector,
    request: DensityRequest,
    url: str,
    latents_url: str = "",
) -> Detector:
    """A trained detector's latents to a detector that scores them.

    Args:
        latents_url: folder for the latents, which further densities of the same model use again; "": none keeps them.
    """
    model = model_of(trained)
    settings = vars(request) | {"settings": density_config(request, model)}
    made_of = fingerprint(["density", trained.origin("made_of"), corpus.manifest["content"], *settings.values()])
    existing = finished(url, made_of)
    if existing is not None:
        return existing
    began = time.perf_counter()
    latents = latents_of(trained, corpus, latents_url or url)
    part, history = fit_density(pool, corpus.url, model, request, latents)
    for warning in history.get("warnings", ()):
        say(f"rayad: {name}: {warning}", sys.stderr)
    minutes = trained.provenance.get("train_minutes", 0.0) + minutes_since(began)
    faults = [*trained.provenance.get("faults", []), *history.pop("faults", [])]
    history.pop("rows", None)
    rows = {"smooth": request.smooth, "classes": request.classes}
    training = {"density_training": history | rows, "train_minutes": minutes, "faults": faults}
    origin = origin_of(corpus, made_of, request.em) | training
    origin |= inherited(origin, trained.provenance)
    fitted = replace(trained, name=name, score=score_of(model, part, request), provenance=origin, calibration=None)
    bundle.save(fitted, url)
    if not latents_url:
        storage.remove(latents)
    return fitted


def score_of(model: Part, density: Part, request: DensityRequest) -> LatentScore:
    """What a fitted density says of latents: its own novelty, or how unlikely they are, in context if it has one."""
    kind = "novelty" if hasattr(density.module, "novelty") else "context" if request.context else "likelihood"
    return LatentScore(model, density, kind, request.context)


def latents_of(trained: Detector, corpus: Corpus, url: str) -> str:
    """The folder below a URL for the latents that a trained detector's model has of a corpus."""
    made_of = fingerprint([trained.origin("made_of"), corpus.manifest["content"]])
    return storage.join(url, f"latents-{made_of}")


def density_config(request: DensityRequest, model: Part) -> Any:
    """The density's configuration; where the latents are codes, it is told how many there are of each.

    Raises:
        OptionError: unknown density, settings it refuses, or codes and a density of numbers alone.
    """
    states = states_of(model.module)
    instead = {"states": (*states, *[0] * len(request.context))} if states else {}
    if states and not hasattr(catalog.find("density", request.density).Config, "states"):
        raise OptionError(
            f"density {request.density} takes numbers, but the latents of {model.name} are codes: fit spn or mixture"
        )
    return catalog.configure("density", request.density, request.settings, **instead)


def states_of(module: Any) -> tuple[int, ...]:
    """How many codes each latent of a model has; none of a model whose latents are numbers."""
    states: tuple[int, ...] = getattr(module, "states", ())
    return states * (module.latents if len(states) == 1 else 1)


@dataclass(frozen=True)
class FittedRows:
    """What a density is fitted to: the rows of a corpus that one of several workers holds."""

    corpus: Corpus
    latents_url: str
    request: DensityRequest
    sync: Sync = ALONE
    device: torch.device = torch.device("cpu")

    def variables(self, split: str) -> Latents:
        """The latents of a split, and the context of the places beside them.

        Raises:
            FormatError: the corpus is of an older rayad and lacks a column of the context.
        """
        latents = read_latents(self.corpus, self.latents_url, split, self.sync.rank, self.sync.world)
        if self.request.context:
            index = self._index(split)
            if missing := [name for name in self.request.context if name not in index]:
                raise FormatError(f"{self.corpus.url}: the corpus has no {', '.join(missing)}; ingest it again")
            context = torch.tensor(index[list(self.request.context)].to_numpy(np.float32))
            latents = torch.cat([latents, context], 1)
        return (latents[self._smoothest(split)] if self.request.smooth else latents).to(self.device)

    def classes(self, split: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """The class of each row of `variables`, -1 where it is not known, and the names of all classes, sorted.

        Raises:
            OptionError: the index has no such column.
        """
        column = self.request.classes
        if not column:
            return np.empty(0, np.int64), ()
        index = self._index(split)
        if column not in index:
            raise OptionError(f"classes are a column of the index, {', '.join(index.columns)}; not {column!r}")
        labels = self.corpus.index("split", column).query("split == @split")[column].astype(str)
        names = tuple(sorted(set(labels) - {""}))
        numbers = {name: number for number, name in enumerate(names)}
        rows = np.array([numbers.get(label, -1) for label in index[column].astype(str)], np.int64)
        return (rows[self._smoothest(split).numpy()] if self.request.smooth else rows), names

    def _share(self, split: str) -> list[tuple[str, slice]]:
        return self.corpus.share(split, self.sync.rank, self.sync.world)

    def _index(self, split: str) -> pd.DataFrame:
        """The index of the worker's rows, in the order of the shards."""
        share = self._share(split)
        shards = dict(tuple(self.corpus.index(shards=[name for name, _ in share]).groupby("shard")))
        return pd.concat([shards[name].sort_values("row_in_shard").iloc[rows] for name, rows in share])

    def _smoothest(self, split: str) -> torch.Tensor:
        """Which of the worker's rows are among the smoothest of the whole split."""
        shards = (self.corpus.read(name)[rows] for name, rows in self._share(split))
        deviation = np.concatenate(
            [(patches / FULL_SCALE).reshape(len(patches), math.prod(patches.shape[1:])).std(1) for patches in shards]
        )
        deviation_column = torch.from_numpy(deviation)[:, None].to(self.device)
        all_columns = chosen(deviation_column, torch.arange(held(deviation_column, self.sync).total), self.sync)
        return torch.from_numpy(deviation <= np.quantile(all_columns.cpu(), SMOOTH))


def _learn_alone(task: dict[str, Any]) -> None:
    """Let a density learn that does so by itself, where its latents are read."""
    torch.set_num_threads(1)
    rows = FittedRows(Corpus.open(task["corpus"]), task["latents"], task["request"])
    train, validation = (rows.variables(split) for split in LEARNING_SPLITS)
    density = task["config"].build(train.shape[1])
    assert isinstance(density, Learner)  # fit_density() asked
    history = density.learn(train, validation, rows.request.em.seed)
    CheckpointFolder(task["result"]).save(State(density.state_dict(), history))


def _loop(task: dict[str, Any], member: Member) -> None:
    """One worker's part of `fit_density`."""
    torch.set_num_threads(1)
    request, config, sync = task["request"], task["config"], member.sync
    rows = FittedRows(Corpus.open(task["corpus"]), task["latents"], request, sync, member.device)
    train, validation = (rows.variables(split) for split in LEARNING_SPLITS)
    density = config.build(train.shape[1]).to(member.device)
    classes, names = rows.classes("train")
    labels = (
        torch.from_numpy(classes).to(member.device) if names and getattr(config, "roots", 0) == len(names) else None
    )
    history = fit(
        density,
        train,
        validation,
        request.em,
        labels=labels,
        sync=sync,
        checkpoints=CheckpointFolder(task["checkpoints"]),
        report=member.report,
    )
    if sync.rank == 0:
        epochs = list(history.rows)
        summary = {"best": history.best, "epochs": len(epochs), "rows": epochs, "warnings": list(history.warnings)}
        CheckpointFolder(task["result"]).save(State(density.state_dict(), summary))
