"""Run a function on N workers of Ray Train, and let them agree through torch.distributed."""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train._internal.utils import get_address_and_port
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from torch import Tensor

from rayad import errors, storage
from rayad.errors import OptionError, RayadError, TrainingError
from rayad.on_ray import metrics
from rayad.on_ray.cluster import progress, same_signal
from rayad.on_ray.resources import Workers

FAILED = "failed.json"
"""What a worker raised, in the folder of Ray Train's files."""


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
    def backend_cls(self) -> type[_TorchBackend]:
        return _MeetingBackend


class _MeetingBackend(_TorchBackend):
    """Lets the workers meet; see `_Meeting`."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Make the process group."""
        address, port = worker_group.execute_single(0, get_address_and_port)
        number, timeout = len(worker_group), timedelta(seconds=backend_config.timeout_s)
        meeting = number, address, port, backend_config.backend, timeout
        ray.get([worker_group.execute_single_async(rank, _meet, rank, *meeting) for rank in range(number)])


def _meet(rank: int, world: int, address: str, port: int, backend: str, timeout: timedelta) -> None:
    """Join the process group, through a store that the first worker keeps."""
    listening = {}
    if rank == 0:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listening["master_listen_fd"] = socket.create_server((address, port), family=family).detach()
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


def report(task: dict[str, Any], row: dict[str, float]) -> None:
    """Tell Prometheus, and from rank 0 the process that waits, how an epoch went.

    Ray Train is not told: it takes one report a poll, every two seconds, and workers with short epochs would wait.
    """
    if "epoch" not in row:
        return
    metrics.tell(task["label"], row)
    if ray.train.get_context().get_world_rank() == 0:
        task["epochs"].tell.remote(row)


@dataclass(frozen=True)
class Fault:
    """Workers that were lost or failed while they did something."""

    when: str
    """UTC, ISO 8601."""
    stage: str
    error: str


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


def run(
    loop: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    workers: Workers,
    url: str,
    epochs: int = 0,
    label: str = "",
) -> list[Fault]:
    """Run ``loop(config)`` on every worker until all return, and show the epochs that `report` tells of.

    Args:
        url: folder for Ray Train's own files; removed when all went well.
        epochs: that may come, at most.
        label: what is learned: "cae", "spn".

    Returns:
        What went wrong on the way and was overcome.

    Raises:
        RayadError: the one that a worker raised.
        OptionError: the cluster has not what the workers need.
    """
    require(workers)
    url = storage.absolute(url)
    storage.remove(url)
    epochs_actor = ray.remote(num_cpus=0, max_restarts=-1)(_Epochs).remote()
    faults = storage.join(url, "faults")
    trainer = TorchTrainer(
        _Guarded(loop, url),
        train_loop_config=config | {"epochs": epochs_actor, "label": label},
        torch_config=_Meeting(backend="nccl" if workers.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(workers.least, workers.number) if workers.least else workers.number,
            use_gpu=workers.gpu,
            resources_per_worker=workers.resources,
        ),
        run_config=RunConfig(
            name="run",
            storage_path=url,
            failure_config=FailureConfig(max_failures=workers.max_failures),
            callbacks=[_Faults(faults, label)],
        ),
    )
    try:
        with same_signal(signal.SIGINT), _shown(epochs_actor, epochs, f"learning {label}"):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause(url, error) from error
    if storage.exists(storage.join(url, FAILED)):
        raise _cause(url)
    overcome = [Fault(**storage.read_json(file)) for file in _listed(faults)]
    storage.remove(url)
    return overcome


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


def sync() -> Distributed:
    """The seam of this worker."""
    context = ray.train.get_context()
    return Distributed(context.get_world_rank(), context.get_world_size())


@contextmanager
def _shown(told: Any, epochs: int, label: str) -> Iterator[None]:
    """Show the epochs from another thread while this one waits for Ray Train."""
    over = threading.Event()

    def watch() -> None:
        first = True
        with progress(epochs, label) as step:
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
class _Guarded:
    """A worker's loop that writes down why it failed: when one worker stops, what Ray tells of it is a lost peer.

    A TrainingError (a loss that is not a number) is seen by all workers in the same step and would come again: the
    loop ends with it. After everything else Ray Train starts the workers anew.
    """

    loop: Callable[[dict[str, Any]], None]
    url: str

    def __call__(self, config: dict[str, Any]) -> None:
        try:
            self.loop(config)
        except RayadError as error:
            storage.write_json(storage.join(self.url, FAILED), {type(error).__name__: str(error)})
            if not isinstance(error, TrainingError):
                raise
        else:
            storage.remove(storage.join(self.url, FAILED))


def _cause(url: str, error: BaseException | None = None) -> RayadError:
    """The error that a worker wrote down, or else what Ray says."""
    written = storage.join(url, FAILED)
    if storage.exists(written):
        ((kind, message),) = storage.read_json(written).items()
        return errors.named(kind, message)
    why = _said(error) if error else "nobody says why"
    return TrainingError(f"training on Ray failed: {why}; the same command goes on where it stopped")
