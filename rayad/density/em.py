"""Learning of densities by expectation-maximization, on one worker or many with the same numbers.

Every worker holds its share of the rows and no more. A step takes a batch of all rows: each worker computes the
statistics of those that it holds, the statistics are summed over workers, and every worker makes the same M-step.
With one batch an epoch and step 1 this is EM on all rows; with more it is stochastic EM (Cappe and Moulines 2009),
which blends the expectation parameters of every node with the batch's own, however few the visits they rest on. So a
node that only one row visits still learns from the next best rows of the batches that lack this row: with b batches
an epoch it rests on about b rows. Few batches over-fit, many blur; 16 served 1,000 rows of digits and 20,000 patches
alike. Learning ends when the likelihood of validation rows has stopped to rise, and the best parameters are kept.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rayad.density.rows import Holding, added, held
from rayad.errors import OptionError, TrainingError
from rayad.fit import ALONE, Checkpoints, Row, Sync, Timed
from rayad.options import Amount, Count, Seed, Share, Weight
from rayad.progress import Progress, State, pack, unpack
from rayad.tensors import Latents, Scores

ENOUGH = 3.0
"""Steps times step size below which a circuit is hardly trained."""


@runtime_checkable
class Statistics(Protocol):
    """What rows say about a density: values that add."""

    @property
    def rows(self) -> Tensor: ...
    @property
    def log_likelihood(self) -> Tensor: ...
    @property
    def visits(self) -> Tensor: ...
    def tensors(self) -> list[Tensor]: ...


S = TypeVar("S", bound=Statistics)
Validation = Float[Tensor, "v m"]
"""Validation rows."""
Labels = Int64[Tensor, " k"]
"""The root of every training row, -1 where it is not known."""


@runtime_checkable
class Density(Protocol[S]):
    """What learning asks of a density: an nn.Module with an E-step and an M-step."""

    def start(self, z: Latents, seed: int, sync: Sync = ALONE) -> None: ...
    def log_prob(self, z: Latents) -> Scores: ...
    def statistics(self, z: Latents, labels: Labels | None = None) -> S: ...
    def update(self, statistics: S, step: float) -> None: ...
    def revive(self, z: Latents, visits: Tensor, share: float, seed: int, sync: Sync = ALONE) -> int: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state_dict: dict[str, Tensor], /) -> object: ...


@dataclass(frozen=True)
class EM:
    """How to learn."""

    epochs: Count = 100
    """Passes over the training rows, at most."""
    batches: Count = 16
    """Steps an epoch; 1 takes all rows at once."""
    batch: Amount = 0
    """Training rows of each step, which then set the number of steps of an epoch; 0: `batches` sets it."""
    step: Share = 0.1
    """Step size of the first epoch: share of the way to a batch's own parameters, above 0 and at most 1."""
    decay: Weight = 0.1
    """Decay of the step size, which in epoch e (from 0) is divided by 1 + decay * e."""
    patience: Count = 8
    """Epochs without a higher validation likelihood after which learning ends."""
    seed: Seed = 0
    """Random seed of the start and of the order of rows."""
    revive: Share = 0.0
    """Share of the mean visits in an epoch below which an input distribution is dead and starts anew; 0: none is."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batches", "patience"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} of expectation-maximization must be at least 1, not {getattr(self, name)}")
        if not 0 < self.step <= 1:
            raise OptionError(f"step of expectation-maximization must be in (0, 1], not {self.step}")
        if not 0 <= self.revive < 1:
            raise OptionError(f"revive of expectation-maximization must be in [0, 1), not {self.revive}")
        if not 0 <= self.decay < math.inf:
            raise OptionError(f"decay of expectation-maximization must be at least 0, not {self.decay}")

    def steps(self, rows: int) -> int:
        """Steps of an epoch over this many training rows."""
        return min(max(1, round(rows / self.batch)) if self.batch else self.batches, rows)

    def step_of(self, epoch: int) -> float:
        """The step size in an epoch, from 0."""
        return self.step / (1 + self.decay * epoch)


def full_batch(epochs: int = 100) -> EM:
    """Expectation-maximization on all rows at once."""
    return EM(epochs=epochs, batches=1, step=1.0, decay=0.0)


PAPER = EM(epochs=50, batch=64, step=1e-4, decay=0.0, patience=50)
"""Dietrichstein et al. 2022: 50 epochs, batches of 64, step 1e-4, no early stop."""


@dataclass(frozen=True)
class EMHistory:
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
    validation: Validation,
    em: EM,
    *,
    labels: Labels | None = None,
    sync: Sync = ALONE,
    checkpoints: Checkpoints | None = None,
    report: Callable[[Row], None] = lambda row: None,
) -> EMHistory:
    """Start the density from the training rows, then `improve` it."""
    _check(train, validation, labels, sync)
    saved = checkpoints.load() if checkpoints else None
    if saved is None:
        density.start(train, em.seed, sync)
    return _improve(density, train, validation, em, _Around(labels, sync, checkpoints, report), saved)


def improve(
    density: Density[S],
    train: Latents,
    validation: Validation,
    em: EM,
    *,
    labels: Labels | None = None,
    sync: Sync = ALONE,
    checkpoints: Checkpoints | None = None,
    report: Callable[[Row], None] = lambda row: None,
) -> EMHistory:
    """Learn from where the density stands, in place, and leave the parameters that are best on validation in it.

    Args:
        train: training rows; missing values are NaN. Of several workers each has its share: together, in the order of
            their ranks, they are what one worker would have.
        validation: rows that decide when to stop; of several workers, the share of this one.
        labels: the root that a training row is known to come from, -1 where it is not: roots become classes.
        checkpoints: saved by rank 0 after every epoch. Where a state is saved, every worker goes on from it, to the
            same bits as without the interruption.
        report: called on every worker after every epoch.

    Raises:
        TrainingError: no rows, an infinite value, or a likelihood that is not finite (names epoch and step).
        OptionError: another number of variables than the density was built for, or of labels than of rows.
        FormatError: the checkpoint is of another density.
    """
    _check(train, validation, labels, sync)
    saved = checkpoints.load() if checkpoints else None
    return _improve(density, train, validation, em, _Around(labels, sync, checkpoints, report), saved)


@dataclass(frozen=True)
class _Around:
    """What learning is given besides the rows."""

    labels: Labels | None
    sync: Sync
    checkpoints: Checkpoints | None
    report: Callable[[Row], None]


def _improve(
    density: Density[S], train: Latents, validation: Validation, em: EM, around: _Around, saved: State | None
) -> EMHistory:
    assert isinstance(density, nn.Module)  # Density's docstring; a Protocol cannot say it
    progress, best = unpack(saved, density) if saved else (Progress(), density.state_dict())
    timed = Timed(around.sync)
    around, share = replace(around, sync=timed), held(train, timed)
    while progress.epoch < em.epochs and progress.epoch - progress.best_epoch < em.patience:
        epoch, began, timed.seconds = progress.epoch + 1, time.perf_counter(), 0.0
        bits, visits = _epoch(density, train, share, em, epoch, around)
        row = {"epoch": epoch, "step": em.step_of(epoch - 1), "samples": share.total / around.sync.world, "train": bits}
        row["validation"] = _bits(density, validation, epoch, around.sync)
        times = {"seconds": time.perf_counter() - began, "seconds_agreement": timed.seconds}
        progress = progress.after_epoch(row | times)
        if progress.best_epoch == epoch:
            best = {name: value.clone() for name, value in density.state_dict().items()}
        if em.revive > 0:
            density.revive(train, visits, em.revive, em.seed + epoch, timed)
        if around.checkpoints and around.sync.rank == 0:
            around.checkpoints.save(pack(density, best, [], progress))
        around.report(progress.rows[-1])
    density.load_state_dict(best)
    steps = em.steps(share.total) * sum(row["step"] for row in progress.rows)
    return EMHistory(tuple(progress.rows), steps, tuple(_warnings(steps, _missing(train, share, timed))))


def _epoch(
    density: Density[S], train: Latents, share: Holding, em: EM, epoch: int, around: _Around
) -> tuple[float, Tensor]:
    """All steps of an epoch; returns bits a dimension of the rows, each as it was met, and the visits of inputs."""
    total, visits, sync, labels = 0.0, torch.zeros(()), around.sync, around.labels
    for number, rows in enumerate(_batches(share.total, em, epoch), 1):
        local_rows = share.places(rows)
        classes = () if labels is None else (labels[local_rows],)
        statistics = density.statistics(train[local_rows], *classes)
        if sync.world > 1:  # of categorical leaves, tensors() makes a table that one worker does not need
            sync.sum_(statistics.tensors())
        log_likelihood = float(statistics.log_likelihood)
        if not math.isfinite(log_likelihood):
            raise TrainingError(f"the log likelihood is {log_likelihood} in epoch {epoch}, step {number}")
        total += log_likelihood
        if em.revive > 0:
            visits = visits.to(statistics.visits) + statistics.visits
        density.update(statistics, em.step_of(epoch - 1))
    return -total / (share.total * train.shape[1] * math.log(2)), visits


def _batches(number: int, em: EM, epoch: int) -> list[Int64[Tensor, " b"]]:
    """Rows of every global batch, shuffled by (seed, epoch); sizes differ by one row at most."""
    order = np.random.default_rng([em.seed, epoch]).permutation(number)
    return list(torch.from_numpy(order).tensor_split(em.steps(number)))


def _bits(density: Density[S], z: Latents, epoch: int, sync: Sync) -> float:
    """Bits a dimension of the rows of all workers."""
    total, rows = density.log_prob(z).sum(dtype=torch.float64), torch.tensor(len(z), device=z.device)
    sync.sum_([total, rows])
    if not total.isfinite():
        raise TrainingError(f"the validation log likelihood is {float(total)} after epoch {epoch}")
    return -float(total) / (int(rows) * z.shape[1] * math.log(2))


def _check(train: Latents, validation: Validation, labels: Labels | None, sync: Sync) -> None:
    for name, z in (("training", train), ("validation", validation)):
        if not held(z, sync).total:
            raise TrainingError(f"there are no {name} rows")
    infinite, share = train.isinf().any(1).nonzero(), held(train, sync)
    if len(infinite):
        row = share.first + int(infinite[0])
        raise TrainingError(f"training rows must be finite or missing; row {row} is not")
    if labels is not None and len(labels) != len(train):
        raise OptionError(f"every training row needs a label or -1: {len(train)} rows have {len(labels)} labels")


def _missing(train: Latents, share: Holding, sync: Sync) -> float:
    """Share of the training values that are missing."""
    return float(added(train.isnan().double().sum(), sync)) / (share.total * train.shape[1])


def _warnings(progress: float, missing: float) -> Iterator[str]:
    if progress < ENOUGH:
        yield (
            f"the steps add up to {progress:.2g}, below {ENOUGH:g}: the density has hardly left its start;"
            " take larger steps or more epochs"
        )
    if missing:
        yield f"{missing:.2%} of the training values are missing"
