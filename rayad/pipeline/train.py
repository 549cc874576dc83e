"""Patches to a trained model, on N workers; each reads its part of every window of shards ahead.

Ray Data is not asked to: its executor would run as a thread of every worker, which spins while it waits and takes half
of the interpreter's time from the training beside it.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from rayad import catalog, storage
from rayad.checkpoints import CheckpointFolder
from rayad.errors import OptionError
from rayad.evaluation import strips
from rayad.fingerprint import fingerprint
from rayad.fit import COLLAPSED, Member, Objective, Schedule, fit
from rayad.patches.corpus import FULL_SCALE, Corpus, Stored, bounds_of
from rayad.patches.order import Lanes, Order, Read, in_turn, lanes_of
from rayad.pipeline.detectors import finished, minutes_since, origin_of, preprocessing_of, require_fits
from rayad.pipeline.requests import NOTHING, Strips, TrainRequest
from rayad.pool import Fault, Pool
from rayad.progress import Row
from rayad.scoring import bundle
from rayad.scoring.detector import Detector
from rayad.scoring.scores import Conditional, ModelScore, Part, scores_of
from rayad.tensors import like
from rayad.terminal import say


def pixels(patches: np.ndarray) -> torch.Tensor:
    """Stored patches as float32 in [0, 1], n c h w."""
    x = torch.from_numpy(patches.astype(np.float32) / FULL_SCALE)
    return x[:, None] if x.ndim == 3 else x.movedim(3, 1).contiguous()


@dataclass(frozen=True)
class WithCondition:
    """The patches of a shard with a plane for each number of a condition, such as the density of the breast."""

    corpus: Corpus
    model: Conditional

    def __call__(self, shard: str, lanes: Lanes) -> Stored:
        patches, index = self.corpus.read(shard, lanes), self.corpus.index(shards=[shard])
        first, last = bounds_of(len(index))[list(lanes)]
        facts = index.set_index("row_in_shard").sort_index()[self.model.condition].iloc[first:last]
        numbers = {fact: self.model.planes(fact) for fact in facts.unique()}
        planes = np.array([numbers[fact] for fact in facts], np.float32) * FULL_SCALE  # n k
        colours = patches if patches.ndim == 4 else patches[..., None]
        spread = np.broadcast_to(planes[:, None, None].astype(np.uint16), (*colours.shape[:3], planes.shape[1]))
        return np.concatenate([colours, spread], axis=3)


def reader(corpus: Corpus, model: Any) -> Read:
    """How the shards are read that the model learns from."""
    return WithCondition(corpus, model) if isinstance(model, Conditional) else corpus.read


def validation_batches(
    read: Read, corpus: Corpus, batch: int, rank: int, world: int
) -> Callable[[], Iterable[torch.Tensor]]:
    """The rank's parts of the validation patches, always in the same order."""
    return lambda: map(pixels, in_turn(read, corpus.shards("validation"), batch, rank, world))


class _Watch:
    """Writes the strips of one training, from rank 0: ``strips/epoch-0005.png`` and ``events`` below a URL."""

    def __init__(self, strips: Strips, url: str, model: Any, x: torch.Tensor) -> None:
        self.strips, self.url, self.model, self.x = strips, url, model, x
        self.folder = tempfile.mkdtemp()
        self.writer = _writer(self.folder) if strips.tensorboard else None

    def saw(self, row: Row) -> None:
        """An epoch or a pass is done."""
        epoch = int(row.get("epoch", 0))
        if not epoch:
            return
        is_due = self.strips.every and (epoch == 1 or epoch % self.strips.every == 0)
        picture = self._drawn() if is_due else None
        if picture is not None:
            storage.write_bytes(storage.join(self.url, "strips", f"epoch-{epoch:04d}.png"), strips.png(picture))
        if self.writer:
            for name, value in row.items():
                self.writer.add_scalar(name, value, epoch)
            if picture is not None:
                self.writer.add_image("strip", picture, epoch, dataformats="HWC")
            self.writer.flush()
            for file in storage.listing(self.folder):
                storage.write_bytes(storage.join(self.url, "events", file.rsplit("/", 1)[-1]), storage.read_bytes(file))

    def close(self) -> None:
        """No epoch follows."""
        if self.writer:
            self.writer.close()
        storage.remove(self.folder)

    def _drawn(self) -> np.ndarray:
        training = self.model.training
        self.model.eval()
        picture = strips.strip(strips.rows(self.model, self.x).values())
        self.model.train(training)
        return picture


def _writer(folder: str) -> Any:
    """A writer of event files; OptionError where what it needs is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise OptionError(
            "event files need tensorboard, which is not installed: pip install 'rayad[dashboard]'"
        ) from error
    return SummaryWriter(folder)


def train(
    pool: Pool,
    corpus_url: str,
    model: str,
    config: Any,
    schedule: Schedule,
    url: str,
    watch: Strips = NOTHING,
) -> tuple[Part, list[Fault], bool]:
    """Train a model on a corpus's healthy patches; interrupted, it goes on from the last epoch.

    Args:
        config: of the model; see its file.
        url: folder for the checkpoints.
        watch: pictures of what is learned; they go beside that folder.

    Returns:
        The trained model, in evaluation mode; the faults that were overcome; whether it has collapsed, where the
        schedule lets it.

    Raises:
        TrainingError: a loss that is not a number, a collapse.
        OptionError: unknown model, or one of other patches than the corpus has, a batch that is larger than the
            corpus, or more workers than lanes.
    """
    catalog.find("models", model)
    corpus = Corpus.open(corpus_url)
    require_fits(model, config, corpus)
    order_of(corpus, schedule)
    lanes_of(0, max(pool.workers.counts))
    task = {"corpus": corpus_url, "config": config, "schedule": schedule, "checkpoints": url, "watch": watch}
    faults = pool.learn(_loop, task, f"{url}/ray", schedule.epochs * learning_stages(config), model)
    state = CheckpointFolder(url).load()
    assert state is not None  # the workers saved it
    collapsed = any(COLLAPSED in row for row in state.scalars["rows"])
    if collapsed:
        say(f"rayad: {model} has collapsed: its scores mean nothing", sys.stderr)
    best = {k.removeprefix("best."): v for k, v in state.tensors.items() if k.startswith("best.")}
    module = config.build().to(torch.float64 if schedule.precision == "float64" else torch.float32)
    module.load_state_dict(best)
    return Part(model, config, module.eval()), faults, collapsed


def model_config(request: TrainRequest, corpus: Corpus) -> Any:
    """The model's configuration; where it does not say of which patches it is, it is of the corpus's.

    Raises:
        OptionError: an unknown model or setting, or a model of other patches than the corpus has.
    """
    patches = {"channels": corpus.channels, "patch_px": corpus.patch_px}
    config = catalog.configure("models", request.model, request.settings, **patches)
    require_fits(request.model, config, corpus)
    return config


def train_detector(pool: Pool, name: str, corpus: Corpus, request: TrainRequest, url: str) -> Detector:
    """Patches to a detector that scores by reconstruction, or whatever the model's first score is.

    Args:
        url: of the detector; what was made of the same is loaded.
    """
    config, schedule = model_config(request, corpus), request.schedule
    made_of = fingerprint(["train", corpus.manifest["content"], request.model, config, schedule])
    existing = finished(url, made_of)
    if existing is not None:
        return existing
    corpus.require_disjoint()
    began = time.perf_counter()
    checkpoints = storage.join(url, f"training-{made_of}")
    part, faults, collapsed = train(pool, corpus.url, request.model, config, schedule, checkpoints, request.strips)
    training = {"train_minutes": minutes_since(began), "faults": [asdict(fault) for fault in faults]}
    origin = origin_of(corpus, made_of, schedule) | training | {"collapsed": collapsed}
    trained = Detector(name, ModelScore(part, scores_of(part)[0]), preprocessing_of(corpus), provenance=origin)
    bundle.save(trained, url)
    storage.remove(checkpoints)
    return trained


def learning_stages(config: Any) -> int:
    """Stages that train for epochs."""
    return sum(any(isinstance(item, Objective) for item in stage) for stage in config.build().stages())


def order_of(corpus: Corpus, schedule: Schedule) -> Order:
    """The order in which a corpus's training patches are learned from."""
    return Order(tuple(corpus.shards("train")), schedule.batch, schedule.seed)


def _loop(task: dict[str, Any], member: Member) -> None:
    """One worker's part of `train`."""
    corpus, schedule, sync = Corpus.open(task["corpus"]), task["schedule"], member.sync
    torch.manual_seed(schedule.seed)
    model = task["config"].build().to(member.device)
    read = reader(corpus, task["config"].build())
    validation = validation_batches(read, corpus, schedule.batch, sync.rank, sync.world)
    watch = _watch(task, model, validation) if sync.rank == 0 else None

    def tell(row: Row) -> None:
        member.report(row)
        if watch:
            watch.saw(row)

    order = order_of(corpus, schedule)
    try:
        fit(
            model,
            lambda epoch: (pixels(batch) for batch in order.batches(read, epoch, sync.rank, sync.world)),
            validation,
            schedule,
            sync=sync,
            checkpoints=CheckpointFolder(task["checkpoints"]),
            report=tell,
        )
    finally:
        if watch:
            watch.close()


def _watch(task: dict[str, Any], model: Any, validation: Callable[[], Iterable[torch.Tensor]]) -> _Watch | None:
    """Who draws the strips, if any are wanted."""
    strips: Strips = task["watch"]
    if not (strips.every or strips.tensorboard):
        return None
    x = next(iter(validation()))[: strips.count]
    return _Watch(strips, task["checkpoints"].rsplit("/", 1)[0], model, x.to(like(model)))
