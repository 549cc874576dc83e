"""A Ray cluster as a `Pool`: Ray Data maps, Ray Train learns, and its workers agree through torch.distributed."""

import math
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from typing import Any, cast

import ray
import ray.data
from ray.autoscaler.sdk import request_resources

from rayad.errors import ClusterError, OptionError, RayadError
from rayad.on_ray import metrics
from rayad.on_ray.cluster import CORES, cluster
from rayad.pool import Fault, Here, Workers
from rayad.terminal import progress_bar, shortened

RETRIES = 3
"""Of items whose process ended."""
WORTH_LOADING = 4
"""Blocks for which an actor is started."""
QUEUED = 2
"""Blocks at each actor, or process of one's own Ray, of which one waits: Ray Data takes 0.2 s to send the next."""
TOGETHER, PIECES = 16, 50
"""Items of a block, at most, and blocks that each process gets at least before one has more items than one."""


@contextmanager
def connected(address: str = "", workers: Workers | None = None, cpus: int = 0) -> Iterator["OnRay"]:
    """A pool on the cluster that an address names, or on one of this process's own; see `cluster`.

    Raises:
        OptionError: the cluster does not have the GPUs of the workers, and they wait for none.
    """
    workers = workers or Workers()
    with cluster(address, cpus):
        if workers.gpu and not workers.wait_minutes:
            require(replace(workers, cpus=0))  # before the stages that need none take hours
        yield OnRay(workers)


@dataclass(frozen=True)
class OnRay:
    """The cluster that this process is connected to; see `Pool` for what it does."""

    workers: Workers = field(default_factory=Workers)

    @property
    def device(self) -> str:
        """Of processes that take a GPU they see their own."""
        return "cuda" if self.workers.gpu else "cpu"

    def map(
        self,
        work: Callable[..., Any],
        items: Sequence[Any],
        label: str,
        shared: tuple = (),
        lost: Callable[[str, Any], Any] | None = None,
    ) -> Iterator[Any]:
        """Ray Data pipelines of tasks, or of actors where the work is a class and takes GPUs.

        Rows hold numbers, results and what CPUs prepare for GPUs; all else that is large belongs into storage.
        """
        if self._loads(work):
            require(replace(self.workers, number=1, least=0, cpus=0))
        together = 1 if self._ahead(work) else self._together(len(items))
        outcomes = self._outcomes(work, items, shared, together)
        with closing(outcomes), progress_bar(len(items), label) as step:  # what an error leaves open would read ahead
            for item, outcome in zip(items, outcomes, strict=True):
                yield outcome.value() if outcome else _lost(item, lost)
                step()

    def _ahead(self, work: Callable[..., Any]) -> Callable[..., Any] | None:
        """What CPUs do of the work ahead of GPUs."""
        return getattr(work, "prepare", None) if self.workers.gpu else None

    def _together(self, items: int) -> int:
        """How many items Ray Data carries as one: each that it carries takes 10 ms and 10 KB of the driver."""
        return min(TOGETHER, items // (PIECES * self._most()) or 1)

    def _most(self) -> int:
        """How many processes work at a time."""
        gpu = self.workers.gpu
        return max(1, int(ray.cluster_resources().get("GPU", 0) / gpu)) if gpu else processes()

    def _outcomes(
        self, work: Callable[..., Any], items: Sequence[Any], shared: tuple, together: int
    ) -> Generator["_Outcome | None"]:
        """What came of each item, None where its process ended each time.

        Items that were lost with others, of their block or of those that waited at their actor, are tried again one by
        one, when the others are done: until then the cluster is taken.
        """
        with closing(self._once(work, items, shared, together, QUEUED)) as outcomes:
            if together == 1 and not self._loads(work):
                yield from outcomes
                return
            for number, outcome in enumerate(outcomes):
                if outcome:
                    yield outcome
                    continue
                rest = [None, *outcomes]
                again = [item for item, outcome in zip(items[number:], rest, strict=True) if not outcome]
                with closing(self._once(work, again, shared, 1, 1)) as alone:
                    yield from (outcome or next(alone) for outcome in rest)

    def _loads(self, work: Callable[..., Any]) -> bool:
        """Whether actors do it, which take GPUs."""
        return isinstance(work, type) and bool(self.workers.gpu)

    def _once(
        self, work: Callable[..., Any], items: Sequence[Any], shared: tuple, together: int, queued: int
    ) -> Generator["_Outcome | None"]:
        """One pipeline over all items, so many of them in a block, and so many blocks at an actor."""
        blocks = [
            {"number": first, "items": _Items(items[first : first + together])}
            for first in range(0, len(items), together)
        ]
        if not blocks:
            return
        with _errors_allowed():  # a Dataset keeps the context it was made in
            dataset = ray.data.from_items(blocks, override_num_blocks=len(blocks))
            if ahead := self._ahead(work):
                dataset = _called(dataset, len(blocks), _Preparing(partial(ahead, *shared)))
            if isinstance(work, type) and self.workers.gpu:
                mapped = self._loaded(dataset, len(blocks), work, shared, queued)
            else:  # tasks, whose processes have loaded torch for the stage before, start at once; actors take seconds
                call = work(*shared) if isinstance(work, type) else partial(work, *shared)
                mapped = _called(dataset, len(blocks), _Called(call))
        expected = 0
        with closing(cast(Generator, iter(mapped.iter_rows()))) as rows:
            for row in rows:
                yield from repeat(None, row["number"] - expected)
                yield row["outcome"]
                expected = row["number"] + 1
        yield from repeat(None, len(items) - expected)

    def _loaded(
        self, dataset: ray.data.Dataset, blocks: int, work: type, shared: tuple, queued: int
    ) -> ray.data.Dataset:
        """Mapped by actors that load once what they need; Ray Data would add none, as none is given two blocks."""
        actors = min(self._most(), math.ceil(blocks / WORTH_LOADING))
        pool = ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=queued)
        with _undeprecated():
            return dataset.map_batches(
                _Loaded,
                fn_constructor_args=(work, shared, bool(self._ahead(work))),
                batch_size=1,
                compute=pool,
                num_gpus=self.workers.gpu,
                max_task_retries=RETRIES,
            )

    def learn(
        self, loop: Callable[[dict[str, Any], Any], None], task: dict[str, Any], url: str, epochs: int, label: str
    ) -> list[Fault]:
        """A run of Ray Train, whose epochs are shown. One worker on a CPU of one's own Ray is this process: Ray Train
        would start six, which takes ten seconds."""
        require(self.workers)
        if self.workers.number == 1 and not self.workers.gpu and CORES in ray.cluster_resources():
            return Here().learn(loop, task, url, epochs, label)
        from rayad.on_ray.learning import learn  # with torch, which takes seconds: what maps may need none

        return learn(self.workers, loop, task, url, epochs, label)

    def count(self, name: str, value: float, **tags: str) -> None:
        """Tell Prometheus."""
        metrics.count(name, value, **tags)


def _called(dataset: ray.data.Dataset, blocks: int, call: "_Called") -> ray.data.Dataset:
    """Mapped by tasks. Of one's own Ray, a core of which each takes, more wait than run; of a cluster Ray Data sends no
    more than it has CPUs for."""
    own = CORES in ray.cluster_resources()
    tasks = ray.data.TaskPoolStrategy(size=min(blocks, processes() * (QUEUED if own else 1)))
    with _undeprecated():
        return dataset.map_batches(
            call, batch_size=1, compute=tasks, max_retries=RETRIES, resources={CORES: 1} if own else {}
        )


def processes() -> int:
    """How many work at a time where they take no GPU: one a logical CPU of a cluster, one a core of one's own Ray."""
    resources = ray.cluster_resources()
    return max(1, int(resources.get(CORES, resources.get("CPU", 1))))


def _undeprecated() -> AbstractContextManager[object]:
    """Without Ray's warning that retries are deprecated as an argument: there is no other way to give them."""
    return warnings.catch_warnings(action="ignore", category=DeprecationWarning)


@dataclass(frozen=True)
class _Items:
    """Items in a row, which Ray Data carries as they are; of tuples Arrow would make lists."""

    values: Sequence[Any]


@dataclass(frozen=True)
class _Outcome:
    """What came of an item."""

    result: Any = None
    error: Exception | None = None

    def value(self) -> Any:
        if self.error:
            raise self.error
        return self.result


class _Called:
    """A Ray Data map that calls a function with each item of a block."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, batch: Any) -> dict[str, Any]:
        (first,), (items,) = batch["number"], batch["items"]
        outcomes = [self._outcome(item) for item in items.values]
        return {"number": list(range(first, first + len(outcomes))), "outcome": outcomes}

    def _outcome(self, item: Any) -> _Outcome:
        try:
            return _Outcome(self.function(item))
        except Exception as error:  # noqa: BLE001, it is raised where the rows are read
            if not isinstance(error, RayadError):
                error.add_note("".join(traceback.format_exception(error)))
            return _Outcome(error=error)


class _Loaded(_Called):
    """As `_Called`, by an actor that loads what it needs once."""

    def __init__(self, work: Callable[..., Any], shared: tuple, prepared: bool) -> None:
        call = work(*shared)
        super().__init__((lambda pair: call(pair[0], pair[1].value)) if prepared else call)


class _Preparing(_Called):
    """A Ray Data map to the same items, each with what came of its preparation."""

    def __call__(self, batch: Any) -> dict[str, Any]:
        (items,) = batch["items"]
        return {"number": batch["number"], "items": [_Items([(item, self._outcome(item)) for item in items.values])]}


def _lost(item: Any, lost: Callable[[str, Any], Any] | None) -> Any:
    why = f"the process that worked on it ended, {RETRIES + 1} times"
    if lost is None:
        raise ClusterError(f"{why}: {shortened(item)}")
    return lost(why, item)


@contextmanager
def _errors_allowed() -> Iterator[None]:
    """Let Ray Data go on without the tasks whose process ended, and keep the order of the rows."""
    context = ray.data.DataContext.get_current()
    before = context.max_errored_blocks, context.execution_options.preserve_order
    context.max_errored_blocks, context.execution_options.preserve_order = -1, True
    try:
        yield
    finally:
        context.max_errored_blocks, context.execution_options.preserve_order = before


def require(workers: Workers, name: str = "worker") -> None:
    """Wait for what the workers need, as long as they say: Ray would wait for ever.

    Args:
        name: of one of them.

    Raises:
        OptionError: the cluster does not have it.
    """
    if lacking := awaited(workers):
        number = workers.counts[0]
        who = f"1 {name} needs" if number == 1 else f"{number} {name}s need"
        shortages = (
            f"{needed:g} {resource}{'s' * (needed != 1)} (the cluster has {has:g})"
            for resource, (needed, has) in lacking.items()
        )
        raise OptionError(f"{who} {' and '.join(shortages)}")


def awaited(workers: Workers) -> dict[str, tuple[float, float]]:
    """What is lacking for the workers after the wait: resource -> what they need of it and what the cluster has."""
    if not workers.wait_minutes:
        return _lacking(workers)
    until = time.monotonic() + 60 * workers.wait_minutes
    request_resources(bundles=[workers.resources] * workers.number)
    try:
        while (lacking := _lacking(workers)) and time.monotonic() < until:
            time.sleep(1)
    finally:
        request_resources(bundles=[])  # the request would outlive this process
    return lacking


def _lacking(workers: Workers) -> dict[str, tuple[float, float]]:
    there = ray.cluster_resources()
    needed = {name: each * workers.counts[0] for name, each in workers.resources.items()}
    return {name: (value, there.get(name, 0)) for name, value in needed.items() if there.get(name, 0) < value}
