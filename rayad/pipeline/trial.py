"""One trial of a sweep: learn with its values, and say how good that is; lower is better.

A trial that trains an image model reports after each of its epochs what compares with other trials: the bits a pixel
under the model's own prior, or, where a density follows, under a Gaussian of the latents, which is made at once. Early
stopping looks at these. What the trial ends with is the value of what would be applied: the parameters of lowest
validation loss and the density that was fitted to their latents. Where images are scored (development.py), only the
end has a value.

A collapse ends a trial: a model that can collapse is asked after every epoch.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from rayad import fit as learning
from rayad.density import em
from rayad.errors import CollapseError, DatasetError, OptionError, TrainingError
from rayad.fit import Pass
from rayad.patches.corpus import LEARNING_SPLITS, Corpus
from rayad.pipeline.detectors import preprocessing_of
from rayad.pipeline.encode import encoded
from rayad.pipeline.fit_density import FittedRows, Learner, score_of
from rayad.pipeline.requests import DensityRequest
from rayad.pipeline.sweep_task import SharedLatents, Task
from rayad.pipeline.train import order_of, pixels, reader, validation_batches
from rayad.scoring.coding import DESCRIBED, bits_together, latents_of, simple_density, taken
from rayad.scoring.description import Batches, Describes, bits_a_pixel
from rayad.scoring.detector import Detector
from rayad.scoring.scores import ModelScore, Part, scores_of
from rayad.tensors import like

COLLAPSED_EPOCHS = 3
"""In a row, after which a model that looks collapsed is: in its first epochs one may be about to learn."""
Report = Callable[[int, float], None]
"""report(epoch, value): the best value so far, infinite where there is none."""


def learn(
    task: Task,
    data: SharedLatents | None,
    values: Mapping[str, Any],
    seed: int | None,
    report: Report,
    device: str = "cpu",
) -> float:
    """One trial: learn with these values.

    Args:
        data: what trials share; None where each trains its own model.
        seed: instead of the configurations'.
        report: told after epochs of the model, or of EM where it trains none.
        device: of torch, to learn on.

    Returns:
        The value, which is finite.

    Raises:
        TrainingError: a loss or value that is not a number, a collapse.
        DatasetError: an image cannot be scored.
        OptionError: values that do not go together.
    """
    torch.set_num_threads(1)
    parts = task.parts_with(values)
    if seed is not None:
        parts = {name: replace(part, seed=seed) if hasattr(part, "seed") else part for name, part in parts.items()}
    value = _of_latents(task, data, parts, report, device) if data else _of_model(task, parts, report, device)
    if not math.isfinite(value):
        raise TrainingError(f"the value is {value}")
    return value


@dataclass(frozen=True)
class Again:
    """Learns with settings and a seed what a trial learns."""

    task: Task
    data: SharedLatents | None
    device: str

    def __call__(self, item: tuple[dict[str, Any], int]) -> tuple[float | None, str]:
        """The value that they end with; where there is none, None and why."""
        values, seed = item
        try:
            return learn(self.task, self.data, values, seed, lambda epoch, value: None, self.device), ""
        except (TrainingError, DatasetError, OptionError) as error:
            return None, str(error)


def _of_latents(task: Task, data: SharedLatents, parts: dict[str, Any], report: Report, device: str) -> float:
    best = math.inf

    def tell(row: learning.Row) -> None:
        nonlocal best
        best = math.inf if task.development else min(best, row["validation"])
        report(int(row["epoch"]), best)

    density = _fitted(task, data, parts, device, tell)
    if task.development:
        assert task.encoder is not None  # density_task() gave it
        return _loss(task, task.encoder, density, device)
    z = torch.tensor(data.validation).to(device)
    with torch.no_grad():
        return -float(density.module.log_prob(z).sum(dtype=torch.float64)) / (z.numel() * math.log(2))


def _of_model(task: Task, parts: dict[str, Any], report: Report, device: str) -> float:
    batches = _Batches(Corpus.open(task.corpus), parts)
    model = _trained(task, parts, batches, report, device)
    if not task.density:
        return _loss(task, model, None, device) if task.development else _bits(model.module, batches)
    rows = _latents(batches.corpus, model, task.classes)
    density = _fitted(task, rows, parts, device)
    if task.development:
        return _loss(task, model, density, device)
    return bits_together(model.module, density.module.log_prob, batches.train, batches.validation)


class _Batches:
    """The patches that a trial learns from, and by which bits are counted."""

    def __init__(self, corpus: Corpus, parts: Mapping[str, Any]) -> None:
        schedule = parts["schedule"]
        self.corpus, self.read = corpus, reader(corpus, parts["model"].build())
        self.order = order_of(corpus, schedule)
        self.validation = validation_batches(self.read, corpus, schedule.batch, 0, 1)

    def epoch(self, number: int) -> Iterator[torch.Tensor]:
        """All training patches in the order of an epoch."""
        return (pixels(batch) for batch in self.order.batches(self.read, number))

    def train(self) -> Iterable[torch.Tensor]:
        """Some training patches, always the same."""
        return taken(self.epoch(1), DESCRIBED)


def _trained(task: Task, parts: dict[str, Any], batches: _Batches, report: Report, device: str) -> Part:
    """The image model, as rayad/pipeline/train.py trains it."""
    schedule = replace(parts["schedule"], collapse="error")
    torch.manual_seed(schedule.seed)
    model = parts["model"].build().to(device)
    watch, best = _CollapseWatch(model, batches.train), math.inf

    def tell(row: learning.Row) -> None:
        nonlocal best
        if "epoch" not in row:
            return
        training, epoch = model.training, int(row["epoch"])
        model.eval()
        watch.look(epoch)
        if not task.development:
            best = min(best, _bits(model, batches, alone=not task.density))
        model.train(training)
        report(epoch, best)

    learning.fit(model, batches.epoch, batches.validation, schedule, report=tell)
    return Part(task.model, parts["model"], model.eval())


def _bits(model: Any, batches: _Batches, *, alone: bool = True) -> float:
    """Bits a pixel under the prior that the model has where it stands alone, or else under what is made at once."""
    if alone and isinstance(model, Describes):
        return bits_a_pixel(model, batches.train, batches.validation)
    log_prob = simple_density(model, latents_of(model, batches.train))
    return bits_together(model, log_prob, batches.train, batches.validation)


class _CollapseWatch:
    """Asks a model after every epoch whether it has collapsed."""

    def __init__(self, model: Any, train: Batches) -> None:
        self.model, self.train, self.epochs = model, train, 0
        items = [item for stage in model.stages() for item in stage]
        self.checks = [item for item in items if isinstance(item, Pass) and item.checks]

    @torch.no_grad()
    def look(self, epoch: int) -> None:
        """CollapseError where it looked collapsed after so many epochs in a row."""
        try:
            for check in self.checks:
                sums = [check.add(x.to(like(self.model))) for x in self.train()]
                check.finish([torch.stack(terms).sum(0) for terms in zip(*sums, strict=True)])
            self.epochs = 0
        except CollapseError as error:
            self.epochs += 1
            if self.epochs >= COLLAPSED_EPOCHS:
                raise CollapseError(f"after epoch {epoch}: {error}") from error


def _latents(corpus: Corpus, model: Part, classes: str) -> SharedLatents:
    """The latents of a corpus by a model, in memory."""
    train, validation = (
        torch.cat([encoded(corpus, model, shard)[rows] for shard, rows in corpus.share(split)]).numpy()
        for split in LEARNING_SPLITS
    )
    return SharedLatents(train, validation, *FittedRows(corpus, "", DensityRequest(classes=classes)).classes("train"))


def _fitted(
    task: Task,
    data: SharedLatents,
    parts: dict[str, Any],
    device: str,
    tell: Callable[[learning.Row], None] = lambda row: None,
) -> Part:
    """The density, as rayad/pipeline/fit_density.py fits it."""
    train, validation, classes = map(torch.tensor, (data.train, data.validation, data.classes))
    config, variables = parts["density"], train.shape[1]
    density = config.build(variables)
    fitted = Part(task.density, config, density.eval(), variables)
    if isinstance(density, Learner):  # by itself, on the CPU
        density.learn(train, validation, parts["em"].seed)
        fitted.module.to(device)
        return fitted
    labels = classes.to(device) if data.names and getattr(config, "roots", 0) == len(data.names) else None
    em.fit(density.to(device), train.to(device), validation.to(device), parts["em"], labels=labels, report=tell)
    return fitted


def _loss(task: Task, model: Part, density: Part | None, device: str) -> float:
    """What a detector of these parts ends with on the images that are for choices."""
    assert task.development is not None  # who calls has asked
    own = ModelScore(model, scores_of(model)[0])
    score = score_of(model, density, DensityRequest(task.density)) if density else own
    preprocessing = preprocessing_of(Corpus.open(task.corpus))
    return task.development.loss(Detector("trial", score, preprocessing, provenance={"made_of": "trial"}), device)
