"""Objectives, the training loop, and the seam through which workers agree.

A model is trained in stages. A stage first makes its passes over the data (a centre, a codebook), then trains
its objectives in turn, a batch each, until the loss on healthy validation patches falls no longer. The loop
is mathematics: data come in as iterables, checkpoints leave through a protocol, and workers meet in `Sync`.
One worker or many, the numbers are the same: a loss has a value a sample, its sum is divided by the size of
the *global* batch, and noise is drawn for the global batch, of which each worker takes its own rows.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, RMSprop

from rayad.errors import CollapseError, OptionError, TrainingError
from rayad.options import Count, Seed, Within
from rayad.progress import Progress, Row, State, pack, unpack, unpack_moments
from rayad.tensors import Patches, Scores, like

Draw = Callable[..., Tensor]
"""draw(*shape): standard normal numbers (n, *shape), this rank's rows of a draw for the global batch."""


@runtime_checkable
class Sync(Protocol):
    """How workers agree. All make the same calls in the same order, or all wait for ever."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def mean_(self, tensors: list[Tensor]) -> None:
        """Put the mean over all workers in the place of each tensor."""
        ...

    def sum_(self, tensors: list[Tensor]) -> None:
        """Put the sum over all workers in the place of each tensor."""
        ...


@dataclass(frozen=True)
class Alone:
    """The only worker: it agrees with itself."""

    rank: int = 0
    world: int = 1

    def mean_(self, tensors: list[Tensor]) -> None:
        """Nothing to do."""

    def sum_(self, tensors: list[Tensor]) -> None:
        """Nothing to do."""


ALONE: Sync = Alone()


@runtime_checkable
class OfWholeBatch(Protocol):
    """A layer that looks at the whole batch, of which every worker has a part: the loop tells it how workers agree."""

    sync: Sync


@dataclass(frozen=True)
class Member:
    """One of the workers that learn together, as its loop sees it."""

    sync: Sync
    device: torch.device
    report: Callable[[Row], None]
    """Tells whoever waits how an epoch went."""


Loop = Callable[[dict[str, Any], Member], None]
"""What each of the workers that learn together runs: loop(task, member)."""


@dataclass(frozen=True)
class Pass:
    """Sums over one pass of the data before a stage trains: a centre, a codebook, a last check."""

    name: str
    add: Callable[[Patches], list[Tensor]]
    """The sums over one batch, without gradients; they are added over batches and workers."""
    finish: Callable[[list[Tensor]], Row]
    """What to do with the sums of everything; returns what to report."""
    of: Literal["training", "validation"] = "training"
    """The patches that are summed over: quantiles of a score belong to patches that nothing was learned from."""
    checks: bool = False
    """Whether it changes nothing and says whether the model has collapsed: a search asks it after epochs too."""


@dataclass(frozen=True)
class Objective:
    """A loss and the parameters that are trained to lower it."""

    name: str
    loss: Callable[[Patches, Draw], Scores]
    """A value a sample. All its randomness comes from `draw`: nothing else is equal on every worker."""
    parameters: list[nn.Parameter]
    learning_rate: float
    optimizer: Literal["adam", "sgd", "rmsprop"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam."""
    repeats: int = 1
    """Batches in a row, in a round over the stage's objectives; a batch serves one step of one objective."""
    validates: bool = True
    """Whether early stopping looks at its validation loss; an adversary's says nothing. A stage in which
    none does trains all its epochs and keeps the last."""
    then: Pass | None = None
    """Sums over each batch after its step, added over workers: what moves without a gradient. What it returns is
    reported as the mean over the epoch."""


Stage = Sequence[Objective | Pass]
COLLAPSED = "collapsed"
"""Entry of the row of a pass that found a collapse."""


@dataclass(frozen=True)
class Schedule:
    """How long and how exactly to train."""

    epochs: Count = 100
    """Passes over the training patches, at most, a stage."""
    batch: Count = 64
    """Patches a step, over all workers together."""
    patience: Count = 10
    """Epochs without a lower validation loss after which a stage ends."""
    precision: Literal["float32", "float64", "bfloat16"] = "float32"
    """bfloat16: automatic mixed precision; parameters, gradients and losses stay float32."""
    seed: Seed = 0
    """Random seed of the order of patches and of the noise."""
    threads: Annotated[int, Within(1, 1024)] = 1
    """Threads of one worker; other numbers of threads round sums differently."""
    collapse: Literal["error", "warning"] = field(default="error", repr=False)
    """Consequence of a collapse: an error, or a warning, for rehearsals of too few epochs."""
    accumulate: Count = 1
    """Parts of a worker's share of a batch that go through the model one after the other: less memory, the same step
    but for rounding. A model that normalizes by its batch (fanogan, dagan, batch_norm of bvae) sees smaller ones."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "patience", "threads", "accumulate"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} of a training schedule must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class TrainingHistory:
    """What `report` was told, in order."""

    rows: tuple[Row, ...]

    @property
    def best(self) -> Row:
        """The epoch whose parameters were kept: the lowest validation loss of the last stage that had one.

        The last pass, of a model that learns by passes alone.
        """
        judged = [row for row in self.rows if "validation" in row]
        if not judged:
            return ([row for row in self.rows if "epoch" in row] or list(self.rows))[-1]
        return min((row for row in judged if row["stage"] == judged[-1]["stage"]), key=lambda row: row["validation"])


@runtime_checkable
class Checkpoints(Protocol):
    """Where the state of training is kept."""

    def save(self, state: State) -> None:
        """Keep this state instead of the one before; after a failure the one before is still there."""
        ...

    def load(self) -> State | None:
        """The state saved last, or None."""
        ...


@runtime_checkable
class Model(Protocol):
    """What the loop asks of a model, which is an nn.Module besides."""

    def stages(self) -> Sequence[Stage]: ...


def fit(
    model: Model,
    train: Callable[[int], Iterable[Patches]],
    validation: Callable[[], Iterable[Patches]],
    schedule: Schedule,
    *,
    sync: Sync = ALONE,
    checkpoints: Checkpoints | None = None,
    report: Callable[[Row], None] = lambda row: None,
) -> TrainingHistory:
    """Train all stages of the model, in place, and leave it with the parameters of lowest validation loss.

    Args:
        train: gives, for an epoch (from 1), this rank's part of every global batch: consecutive rows, the
            lower ranks' first. All ranks give the same number of parts; a part may be empty.
        validation: the same for the validation patches, always in the same order.
        checkpoints: saved by rank 0 after every epoch and stage. Where a state is saved, every rank goes on
            from it, on a CPU to the same bits as without the interruption.
        report: called on every rank after every epoch and pass.

    Raises:
        TrainingError: a loss or gradient that is not finite (names epoch and step), no patches, a collapse.
        FormatError: the checkpoint is of another model.
    """
    assert isinstance(model, nn.Module)  # Model's docstring; a Protocol cannot say it
    model.to(torch.float64 if schedule.precision == "float64" else torch.float32)
    stages, progress, best = model.stages(), Progress(), {}
    saved = checkpoints.load() if checkpoints else None
    if saved:
        progress, best = unpack(saved, model)
    sync = Timed(sync)
    team = _Team(model, schedule, sync)
    with _threads(schedule.threads), _together(model, sync):
        _start_equal(model, sync)
        for stage in stages[progress.stage :]:
            objectives = [item for item in stage if isinstance(item, Objective)]
            optimizers = [_optimizer(objective) for objective in objectives]
            if saved and progress.epoch > progress.started:
                unpack_moments(saved, optimizers)
            else:
                for item in [item for item in stage if isinstance(item, Pass)]:
                    row = _made(team, item, train(progress.epoch + 1) if item.of == "training" else validation())
                    progress = progress.after_pass({"stage": progress.stage} | row)
                    report(progress.rows[-1])
            while objectives and _goes_on(progress, schedule):
                epoch, began, sync.seconds = progress.epoch + 1, time.perf_counter(), 0.0
                parts = _Waited(train(epoch))
                losses = _train(team, objectives, optimizers, parts, epoch)
                losses |= _validate(team, objectives, validation(), epoch)
                row = {"stage": progress.stage, "epoch": epoch, "samples": parts.samples}
                times = {"seconds": time.perf_counter() - began, "seconds_data": parts.seconds}
                progress = progress.after_epoch(row | times | {"seconds_agreement": sync.seconds} | losses)
                if progress.best_epoch == epoch:
                    best = {name: value.clone() for name, value in model.state_dict().items()}
                if checkpoints and sync.rank == 0:
                    checkpoints.save(pack(model, best, optimizers, progress))
                report(progress.rows[-1])
            if objectives:
                model.load_state_dict(best)
            progress = progress.after_stage()
            if checkpoints and sync.rank == 0:
                checkpoints.save(pack(model, model.state_dict(), [], progress))
    model.eval()
    return TrainingHistory(tuple(progress.rows))


def batches(patches: Patches, schedule: Schedule, epoch: int | None = None, *, sync: Sync = ALONE) -> Iterator[Patches]:
    """This rank's part of every global batch of patches in memory: shuffled for an epoch, or as they lie."""
    order = np.arange(len(patches))
    if epoch is not None:
        order = np.random.default_rng([schedule.seed, epoch]).permutation(order)
    for start in range(0, len(order), schedule.batch):
        rows = order[start : start + schedule.batch]
        yield patches[rows[len(rows) * sync.rank // sync.world : len(rows) * (sync.rank + 1) // sync.world]]


@dataclass(frozen=True)
class _Team:
    """What all ranks have in common, and this rank's way to the others."""

    model: nn.Module
    schedule: Schedule
    sync: Sync

    def receive(self, x: Patches, epoch: int, step: int) -> "_Share":
        """This rank's part of a global batch as the model wants it."""
        model_like, sync = like(self.model), self.sync
        sizes = torch.zeros(sync.world, dtype=torch.int64, device=model_like.device)
        sizes[sync.rank] = len(x)
        sync.sum_([sizes])
        seed = np.random.SeedSequence([self.schedule.seed, epoch, step]).generate_state(1, np.uint64)
        first, total, smallest = (int(number) for number in (sizes[: sync.rank].sum(), sizes.sum(), sizes.min()))
        return _Share(x.to(model_like), first, total, int(seed[0]), smallest)

    def loss(self, objective: Objective, share: "_Share") -> Tensor:
        """The sum over a share."""
        with torch.autocast(share.x.device.type, torch.bfloat16, enabled=self.schedule.precision == "bfloat16"):
            return objective.loss(share.x, share.draw()).sum()

    def gradient(self, objective: Objective, share: "_Share") -> Tensor:
        """The loss and its gradient of a share, one behind the other, for a mean over the ranks."""
        loss = self.loss(objective, share) * (self.sync.world / share.total)
        gradients = torch.autograd.grad(loss, objective.parameters, materialize_grads=True)
        return torch.cat([value.detach().reshape(-1) for value in (loss, *gradients)])


@dataclass(frozen=True)
class _Share:
    """Consecutive rows of a global batch."""

    x: Patches
    first: int
    """Row of the global batch that the share begins with."""
    total: int
    """Rows of the global batch."""
    seed: int
    """Of the noise of the global batch."""
    smallest: int
    """Rows of the rank that has fewest: all ranks cut their shares into as many parts."""

    def draw(self) -> Draw:
        """The share's rows of what is drawn for the global batch."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            noise = torch.randn(self.total, *shape, generator=generator)
            return noise[self.first : self.first + len(self.x)].to(self.x)

        return draw

    def parts(self, number: int) -> Iterator["_Share"]:
        """So many shares that make up this one, of about the same size."""
        first = self.first
        for x in self.x.tensor_split(max(1, min(number, self.smallest))):
            yield replace(self, x=x, first=first)
            first += len(x)


class Timed:
    """A `Sync` that knows how long it took."""

    def __init__(self, sync: Sync) -> None:
        self.sync, self.rank, self.world, self.seconds = sync, sync.rank, sync.world, 0.0

    def mean_(self, tensors: list[Tensor]) -> None:
        began = time.perf_counter()
        self.sync.mean_(tensors)
        self.seconds += time.perf_counter() - began

    def sum_(self, tensors: list[Tensor]) -> None:
        began = time.perf_counter()
        self.sync.sum_(tensors)
        self.seconds += time.perf_counter() - began


class _Waited:
    """Parts of batches, how many rows they had, and how long one waited for them."""

    def __init__(self, parts: Iterable[Patches]) -> None:
        self.parts, self.samples, self.seconds = parts, 0, 0.0

    def __iter__(self) -> Iterator[Patches]:
        began = time.perf_counter()
        for part in self.parts:
            self.seconds += time.perf_counter() - began
            self.samples += len(part)
            yield part
            began = time.perf_counter()


def _train(
    team: _Team,
    objectives: list[Objective],
    optimizers: list[Optimizer],
    parts: Iterable[Patches],
    epoch: int,
) -> Row:
    """One epoch: the objectives take turns, a batch each. Returns the mean loss of each."""
    team.model.train()
    turns = cycle([pair for pair in zip(objectives, optimizers, strict=True) for _ in range(pair[0].repeats)])
    losses: dict[str, list[float]] = {}
    reported: dict[str, list[float]] = {}
    for step, (part, (objective, optimizer)) in enumerate(zip(parts, turns, strict=False), 1):
        first_share, *other_shares = team.receive(part, epoch, step).parts(team.schedule.accumulate)
        flat = team.gradient(objective, first_share)
        for share in other_shares:
            flat += team.gradient(objective, share)
        team.sync.mean_([flat])
        if not flat.isfinite().all():
            location = f"in epoch {epoch}, step {step}"
            raise TrainingError(f"{objective.name}: loss {flat[0]:.4g} or its gradient is not finite {location}")
        sizes = [parameter.numel() for parameter in objective.parameters]
        for parameter, gradient in zip(objective.parameters, flat[1:].split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)
        optimizer.step()
        losses.setdefault(f"train_{objective.name}", []).append(float(flat[0]))
        if objective.then:
            for name, value in _summed(team, objective.then, [part]).items():
                reported.setdefault(name, []).append(value)
    if not losses:
        raise TrainingError(f"there are no patches to train on in epoch {epoch}")
    return {name: math.fsum(values) / len(values) for name, values in (losses | reported).items()}


@torch.no_grad()
def _validate(team: _Team, objectives: list[Objective], parts: Iterable[Patches], epoch: int) -> Row:
    """The mean loss over the validation patches of all ranks, with the same noise after every epoch."""
    validating = [objective for objective in objectives if objective.validates]
    if not validating:
        return {}
    team.model.eval()
    sums = torch.zeros(2, dtype=torch.float64)  # of losses, of patches
    for step, part in enumerate(parts):
        share = team.receive(part, 0, step)
        losses = [float(team.loss(objective, share)) for objective in validating]
        sums += torch.tensor([sum(losses), len(share.x)], dtype=torch.float64)
    sums = sums.to(like(team.model).device)
    team.sync.sum_([sums])
    loss, count = sums.tolist()
    if not count:
        raise TrainingError("there are no patches to validate on")
    if not math.isfinite(loss):
        raise TrainingError(f"the validation loss is {loss} after epoch {epoch}")
    return {"validation": loss / count}


def _make(team: _Team, item: Pass, parts: Iterable[Patches]) -> Row:
    team.model.eval()
    return _summed(team, item, parts)


def _made(team: _Team, item: Pass, parts: Iterable[Patches]) -> Row:
    """The row of a pass; of one that finds a collapse, `COLLAPSED`, where that is no error."""
    try:
        return _make(team, item, parts)
    except CollapseError:
        if team.schedule.collapse == "error":
            raise
        return {COLLAPSED: 1.0}


@torch.no_grad()
def _summed(team: _Team, item: Pass, parts: Iterable[Patches]) -> Row:
    sums: list[Tensor] = []
    for part in parts:
        batch_sums = item.add(part.to(like(team.model)))
        sums = [a + b for a, b in zip(sums, batch_sums, strict=True)] if sums else batch_sums
    if not sums:
        raise TrainingError(f"there are no patches for {item.name}")
    team.sync.sum_(sums)
    return item.finish(sums)


def _goes_on(progress: Progress, schedule: Schedule) -> bool:
    out_of_patience = progress.epoch - progress.best_epoch >= schedule.patience
    return progress.epoch - progress.started < schedule.epochs and not out_of_patience


def _optimizer(objective: Objective) -> Optimizer:
    match objective.optimizer:
        case "adam":
            return Adam(objective.parameters, lr=objective.learning_rate, betas=objective.betas)
        case "sgd":
            return SGD(objective.parameters, lr=objective.learning_rate)
        case "rmsprop":
            return RMSprop(objective.parameters, lr=objective.learning_rate)


def _start_equal(model: nn.Module, sync: Sync) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    values = [value.flatten().clone() for value in model.state_dict().values()]
    if sync.rank > 0:
        values = [torch.zeros_like(value) for value in values]
    sync.sum_(values)
    for target, value in zip(model.state_dict().values(), values, strict=True):
        target.copy_(value.view_as(target))


@contextmanager
def _together(model: nn.Module, sync: Sync) -> Iterator[None]:
    """Within, the layers that look at the whole batch have the workers' way to agree."""
    layers = [layer for layer in model.modules() if isinstance(layer, OfWholeBatch)]
    for layer in layers:
        layer.sync = sync
    try:
        yield
    finally:
        for layer in layers:
            layer.sync = ALONE


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
