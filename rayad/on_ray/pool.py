"""A Ray cluster as a `Pool`: Ray Data maps, Ray Train learns, and its workers agree through torch.distributed."""

import pickle
import signal
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import ray
import ray.data
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray import cloudpickle
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor

from rayad import storage
from rayad.errors import ClusterError, OptionError, RayadError, TrainingError
from rayad.on_ray import metrics
from rayad.on_ray.cluster import cluster, same_signal
from rayad.pool import Fault, Loop, Member, Workers
from rayad.progress import Row
from rayad.terminal import progress_bar, shortened

RETRIES = 3
"""Of an item whose process ended."""
AT_ONCE = 1
"""Items that an actor is given at a time: one that ends its process takes no other with it."""


@contextmanager
def connected(address: str = "", workers: Workers | None = None, cpus: int = 0) -> Iterator["OnRay"]:
    """A pool on the cluster that an address names, or on one of this process's own; see `cluster`."""
    with cluster(address, cpus):
        yield OnRay(workers or Workers())


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
        """A Ray Data pipeline: a row an item, in tasks, or in actors where the work is a class.

        Rows hold the item's number and result alone: what is large belongs into storage, not into Ray's object store.
        They are pickled, since Arrow would make lists of tuples and refuse dataclasses. That opens no door: Ray pickles
        what its own processes send each other, and whoever can write a row can run code in them anyway
        (docs/security.md). Nothing that a user loads comes this way.
        """
        if not items:
            return
        rows = [{"number": number, "item": cloudpickle.dumps(item)} for number, item in enumerate(items)]  # pyright: ignore[reportPrivateImportUsage]
        with _errors_allowed():  # a Dataset keeps the context it was made in
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
            mapped = self._loaded(dataset, work, shared) if isinstance(work, type) else _called(dataset, work, shared)
        expected = 0
        with progress_bar(len(items), label) as step:
            for row in mapped.iter_rows():
                for number in range(expected, row["number"]):
                    yield _lost(items[number], lost)
                    step()
                expected = row["number"] + 1
                yield _result(row)
                step()
            for number in range(expected, len(items)):
                yield _lost(items[number], lost)
                step()

    def _loaded(self, dataset: ray.data.Dataset, work: type, shared: tuple) -> ray.data.Dataset:
        """Mapped by actors, each of which loads once what it needs."""
        resources = ray.cluster_resources()
        size = int(resources.get("GPU", 0) / self.workers.gpu) if self.workers.gpu else int(resources.get("CPU", 1))
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, size), max_tasks_in_flight_per_actor=AT_ONCE)
        with _undeprecated():
            return dataset.map_batches(
                _Loaded,
                fn_constructor_args=(work, shared),
                batch_size=1,
                compute=pool,
                num_gpus=self.workers.gpu or None,
                max_restarts=-1,
                max_task_retries=RETRIES,
            )

    def learn(self, loop: Loop, task: dict[str, Any], url: str, epochs: int, label: str) -> list[Fault]:
        """A run of Ray Train, whose epochs are shown."""
        require(self.workers)
        url = storage.absolute(url)
        storage.remove(url)
        told = ray.remote(num_cpus=0, max_restarts=-1)(_Epochs).remote()
        faults = storage.join(url, "faults")
        trainer = TorchTrainer(
            _Learning(loop, label),
            train_loop_config={"task": task, "epochs": told},
            torch_config=_Meeting(backend="nccl" if self.workers.gpu >= 1 else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=(self.workers.least, self.workers.number) if self.workers.least else self.workers.number,
                use_gpu=bool(self.workers.gpu),
                resources_per_worker=self.workers.resources,
            ),
            run_config=RunConfig(
                name="run",
                storage_path=url,
                failure_config=FailureConfig(max_failures=self.workers.max_failures),
                callbacks=[_Faults(faults, label)],
            ),
        )
        try:
            with same_signal(signal.SIGINT), _shown(told, epochs, f"learning {label}"):
                result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _cause(error) from error
        if isinstance(result.return_value, RayadError):
            raise result.return_value
        overcome = [Fault(**storage.read_json(file)) for file in _listed(faults)]
        storage.remove(url)
        return overcome

    def count(self, name: str, value: float, **tags: str) -> None:
        """Tell Prometheus."""
        metrics.count(name, value, **tags)


def _called(dataset: ray.data.Dataset, work: Callable[..., Any], shared: tuple) -> ray.data.Dataset:
    """Mapped by tasks."""
    with _undeprecated():
        return dataset.map_batches(_Called(partial(work, *shared)), batch_size=1, max_retries=RETRIES)


def _undeprecated() -> AbstractContextManager[object]:
    """How often a process is begun again is an argument that Ray warns of, without another way to say it."""
    return warnings.catch_warnings(action="ignore", category=DeprecationWarning)


class _Called:
    """A Ray Data map that calls a function with the item of each row."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, batch: Any) -> dict[str, Any]:
        (number,), (item,) = batch["number"], batch["item"]
        try:
            result = {"result": self.function(pickle.loads(item))}
        except Exception as error:  # noqa: BLE001, it is raised where the rows are read
            if not isinstance(error, RayadError):
                error.add_note("".join(traceback.format_exception(error)))
            result = {"error": error}
        return {"number": [number], "row": [cloudpickle.dumps(result)]}  # pyright: ignore[reportPrivateImportUsage]


class _Loaded(_Called):
    """As `_Called`, by an actor that loads what it needs once."""

    def __init__(self, work: Callable[..., Any], shared: tuple) -> None:
        super().__init__(work(*shared))


def _result(row: dict[str, Any]) -> Any:
    """The result in a row, or the error that the call raised."""
    outcome = pickle.loads(row["row"])
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


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


@dataclass(frozen=True)
class Distributed:
    """The `Sync` of a Ray Train worker."""

    rank: int
    world: int

    def mean_(self, tensors: list[Tensor]) -> None:
        """One all-reduce of all tensors, then the division: gloo has no mean of its own."""
        self.sum_(tensors)
        for tensor in tensors:
            tensor.div_(self.world)

    def sum_(self, tensors: list[Tensor]) -> None:
        """One all-reduce a type over the tensors joined end to end, the types in the same order on every worker."""
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            same = [t for t in tensors if t.dtype == dtype]
            joined = torch.cat([t.reshape(-1) for t in same])
            dist.all_reduce(joined)
            for tensor, part in zip(same, joined.split([t.numel() for t in same]), strict=True):
                tensor.copy_(part.view_as(tensor))


@dataclass
class _Meeting(TorchConfig):
    """As Ray Train's, but where the workers meet listens on the first worker's address alone, not on all of its node's.

    Whoever reaches that port can read and change what the workers agree on.
    """

    @property
    def backend_cls(self) -> type[Backend]:  # pyright: ignore[reportIncompatibleMethodOverride], any Backend may be
        return _MeetingBackend


class _MeetingBackend(Backend):
    """Lets the workers meet; see `_Meeting`."""

    share_cuda_visible_devices = True
    """As Ray Train's: NCCL reaches the GPUs of a node's other workers."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Make the process group."""
        address, port = worker_group.execute_single(0, _free_place)
        number, timeout = len(worker_group), timedelta(seconds=backend_config.timeout_s)
        meeting = number, address, port, backend_config.backend, timeout
        ray.get([worker_group.execute_single_async(rank, _meet, rank, *meeting) for rank in range(number)])


def _free_place() -> tuple[str, int]:
    """This node's address, and a port there that nobody listens at."""
    address = ray.util.get_node_ip_address()
    with socket.create_server((address, 0), family=_family(address)) as probe:
        return address, probe.getsockname()[1]


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _meet(rank: int, world: int, address: str, port: int, backend: str, timeout: timedelta) -> None:
    """Join the process group, through a store that the first worker keeps."""
    listening = {}
    if rank == 0:
        listening["master_listen_fd"] = socket.create_server((address, port), family=_family(address)).detach()
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        address, port, world, rank == 0, timeout, **listening
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


class _Epochs:
    """What rank 0 tells of its epochs, for the process that waits."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def tell(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def take(self) -> list[dict[str, float]]:
        rows, self.rows = self.rows, []
        return rows


class _Faults(UserCallback):
    """Writes faults down, one line each, and counts them; runs in the process that leads the workers."""

    def __init__(self, url: str, stage: str) -> None:
        self.url, self.stage = url, stage

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in sorted(worker_exceptions.items()):
            when = datetime.now(UTC)
            fault = asdict(Fault(when.isoformat(timespec="seconds"), self.stage, f"worker {rank}: {_said(error)}"))
            storage.write_json(storage.join(self.url, f"{when.timestamp():.6f}-{rank}.json"), fault)
            metrics.count("faults", 1, stage=self.stage)


def require(workers: Workers) -> None:
    """Wait for what the workers need, as long as they say: Ray would wait for ever.

    Raises:
        OptionError: the cluster does not have it.
    """
    if lacking := awaited(workers):
        shortage = ", ".join(f"{needed:g} {name}s, it has {has:g}" for name, (needed, has) in lacking.items())
        raise OptionError(f"{workers.counts[0]} workers need of the cluster: {shortage}")


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


def _listed(url: str) -> list[str]:
    return storage.listing(url) if storage.exists(url) else []


def _said(error: BaseException) -> str:
    """Its last line; of memory that was used up, where Ray's last line is a hint, what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("running low on memory" in line for line in lines):
        return "the memory of a node was used up, so Ray killed processes"
    return lines[-1] if lines else repr(error)


@contextmanager
def _shown(told: Any, epochs: int, label: str) -> Iterator[None]:
    """Show the epochs from another thread while this one waits for Ray Train."""
    over = threading.Event()

    def watch() -> None:
        first = True
        with progress_bar(epochs, label) as step:
            while True:
                last = over.wait(1)
                with suppress(RayActorError):  # it is lost, and another comes
                    for row in ray.get(told.take.remote()):
                        done = int(row["epoch"]) if first else 1  # what an interrupted call did counts too
                        step(f"validation {row['validation']:.5g}" if "validation" in row else "", done)
                        first = False
                if last:
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True)
class _Learning:
    """What Ray Train runs on a worker.

    A TrainingError (a loss that is not a number) is seen by all workers in the same step and would come again: it is
    the loop's result. After every other error Ray Train starts the workers anew.
    """

    loop: Loop
    label: str

    def __call__(self, config: dict[str, Any]) -> TrainingError | None:
        context = ray.train.get_context()
        sync = Distributed(context.get_world_rank(), context.get_world_size())

        def report(row: Row) -> None:
            """Ray Train is not told: it takes one report a poll, every two seconds, and short epochs would wait."""
            if "epoch" not in row:
                return
            metrics.tell(self.label, row)
            if sync.rank == 0:
                config["epochs"].tell.remote(row)

        try:
            self.loop(config["task"], Member(sync, ray.train.torch.get_device(), report))
        except TrainingError as error:
            return error
        return None


def _cause(error: BaseException) -> RayadError:
    """The error that a worker raised, or else what Ray says: when one stops, the others tell of a lost peer."""
    for failure in getattr(error, "worker_failures", {}).values():
        if isinstance(failure, RayadError):
            return failure
    return TrainingError(f"training on Ray failed: {_said(error)}; the same command goes on where it stopped")
