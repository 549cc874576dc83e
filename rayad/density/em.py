"""Learning of densities by expectation-maximization, on one worker or many with the same numbers.

Every step takes a batch of training rows: each worker computes the statistics of its share, the statistics are
summed over workers, and every worker makes the same M-step. With one batch an epoch and step 1 this is EM on all
rows; with more it is stochastic EM (Cappe and Moulines 2009), which blends the expectation parameters of every node
with the batch's own, however few the visits they rest on. So a node that only one row visits still learns from the
next best rows of the batches that lack this row: with b batches an epoch it rests on about b rows. Few batches
over-fit, many blur; 16 served 1,000 rows of digits and 20,000 patches alike. Learning ends when the likelihood of
validation rows has stopped to rise, and the best parameters are kept.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rayad.arrays import Latents, Scores
from rayad.errors import OptionError, TrainingError
from rayad.fit import ALONE, Row, Sync

ENOUGH = 3.0
"""Steps times step size below which a circuit is hardly trained."""


@runtime_checkable
class Statistics(Protocol):
    """What rows say about a density: values that add."""

    @property
    def rows(self) -> Tensor: ...
    @property
    def log_likelihood(self) -> Tensor: ...
    def tensors(self) -> list[Tensor]: ...


S = TypeVar("S", bound=Statistics)
Held = Float[Tensor, "v m"]
"""Validation rows."""


@runtime_checkable
class Density(Protocol[S]):
    """What learning asks of a density: an nn.Module with an E-step and an M-step."""

    def start(self, z: Latents, seed: int) -> None: ...
    def log_prob(self, z: Latents) -> Scores: ...
    def statistics(self, z: Latents) -> S: ...
    def update(self, statistics: S, step: float) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state_dict: dict[str, Tensor], /) -> object: ...


@dataclass(frozen=True)
class EM:
    """How to learn."""

    epochs: int = 100
    """Passes over the training rows, at most."""
    batches: int = 16
    """Steps an epoch; 1 takes all rows at once."""
    step: float = 0.1
    """Share of the way to a batch's parameters that the first epoch's steps go, above 0 and at most 1."""
    decay: float = 0.1
    """Steps of epoch e (from 0) are 1 + decay * e times smaller."""
    patience: int = 8
    """Epochs without a higher validation likelihood after which learning ends."""
    seed: int = 0
    """Of the start and of the order of rows."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batches", "patience"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} of expectation-maximization must be at least 1, not {getattr(self, name)}")
        if not 0 < self.step <= 1:
            raise OptionError(f"step of expectation-maximization must be in (0, 1], not {self.step}")
        if not 0 <= self.decay < math.inf:
            raise OptionError(f"decay of expectation-maximization must be at least 0, not {self.decay}")

    def step_of(self, epoch: int) -> float:
        """The step size in an epoch, from 0."""
        return self.step / (1 + self.decay * epoch)


def full_batch(epochs: int = 100) -> EM:
    """Expectation-maximization on all rows at once."""
    return EM(epochs=epochs, batches=1, step=1.0, decay=0.0)


def paper(rows: int) -> EM:
    """Dietrichstein et al. 2022 for this many training rows: 50 epochs, batches of 64, step 1e-4, no early stop."""
    return EM(epochs=50, batches=max(1, round(rows / 64)), step=1e-4, decay=0.0, patience=50)


@dataclass(frozen=True)
class History:
    """How learning went: epoch (from 1), step, train and validation in bits a dimension, seconds."""

    rows: tuple[Row, ...]
    progress: float
    """Sum of the steps taken."""
    warnings: tuple[str, ...]

    @property
    def best(self) -> Row:
        """The epoch whose parameters were kept."""
        return min(self.rows, key=lambda row: row["validation"])


def fit(
    density: Density[S],
    train: Latents,
    validation: Held,
    em: EM,
    *,
    sync: Sync = ALONE,
    report: Callable[[Row], None] = lambda row: None,
) -> History:
    """Start the density from the training rows, then `improve` it."""
    _check(train, validation)
    density.start(train, em.seed)
    return improve(density, train, validation, em, sync=sync, report=report)


def improve(
    density: Density[S],
    train: Latents,
    validation: Held,
    em: EM,
    *,
    sync: Sync = ALONE,
    report: Callable[[Row], None] = lambda row: None,
) -> History:
    """Learn from where the density stands, in place, and leave the parameters that are best on validation in it.

    Args:
        train: all training rows, the same on every worker; missing values are NaN.
        validation: rows that decide when to stop; the same on every worker.
        report: called on every worker after every epoch.

    Raises:
        TrainingError: no rows, or a likelihood that is not finite (names epoch and step).
        OptionError: another number of variables than the density was built for.
    """
    _check(train, validation)
    rows: list[Row] = []
    best, best_epoch = density.state_dict(), 0
    while len(rows) < em.epochs and len(rows) - best_epoch < em.patience:
        epoch, began = len(rows) + 1, time.perf_counter()
        row = {"epoch": epoch, "step": em.step_of(epoch - 1), "train": _epoch(density, train, em, epoch, sync)}
        row["validation"] = _bits(density, validation, epoch, sync)
        rows.append(row | {"seconds": time.perf_counter() - began})
        if best_epoch == 0 or row["validation"] < rows[best_epoch - 1]["validation"]:
            best_epoch = epoch
            best = {name: value.clone() for name, value in density.state_dict().items()}
        report(rows[-1])
    density.load_state_dict(best)
    progress = len(_batches(len(train), em, 1)) * sum(row["step"] for row in rows)
    return History(tuple(rows), progress, tuple(_warnings(progress, train)))


def _epoch(density: Density[S], train: Latents, em: EM, epoch: int, sync: Sync) -> float:
    """All steps of an epoch; returns bits a dimension of the training rows, each as it was met."""
    total = 0.0
    for number, rows in enumerate(_batches(len(train), em, epoch), 1):
        statistics = density.statistics(train[rows[sync.rank :: sync.world]])
        sync.sum_(statistics.tensors())
        log_likelihood = float(statistics.log_likelihood)
        if not math.isfinite(log_likelihood):
            raise TrainingError(f"the log likelihood is {log_likelihood} in epoch {epoch}, step {number}")
        total += log_likelihood
        density.update(statistics, em.step_of(epoch - 1))
    return -total / (train.numel() * math.log(2))


def _batches(number: int, em: EM, epoch: int) -> list[Int64[Tensor, " b"]]:
    """Rows of every global batch, shuffled by (seed, epoch); sizes differ by one row at most."""
    order = np.random.default_rng([em.seed, epoch]).permutation(number)
    return list(torch.from_numpy(order).tensor_split(min(em.batches, number)))


def _bits(density: Density[S], z: Latents, epoch: int, sync: Sync) -> float:
    """Bits a dimension of all rows, of which every worker does its share."""
    total = density.log_prob(z[sync.rank :: sync.world]).sum(dtype=torch.float64)
    sync.sum_([total])
    if not total.isfinite():
        raise TrainingError(f"the validation log likelihood is {float(total)} after epoch {epoch}")
    return -float(total) / (z.numel() * math.log(2))


def _check(train: Latents, validation: Held) -> None:
    for name, z in (("training", train), ("validation", validation)):
        if not len(z):
            raise TrainingError(f"there are no {name} rows")


def _warnings(progress: float, train: Latents) -> Iterator[str]:
    if progress < ENOUGH:
        yield (
            f"the steps add up to {progress:.2g}, below {ENOUGH:g}: the density has hardly left its start;"
            " take larger steps or more epochs"
        )
    missing = float(train.isnan().double().mean())
    if missing:
        yield f"{missing:.2%} of the training values are missing"
