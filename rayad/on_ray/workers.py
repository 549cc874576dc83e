"""Run a function on N workers of Ray Train, and let them agree through torch.distributed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor

from rayad import errors, storage
from rayad.errors import RayadError, TrainingError
from rayad.on_ray.cluster import progress
from rayad.on_ray.resources import Workers


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


class _Epochs:
    """What rank 0 tells of its epochs, for the process that waits."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def tell(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def after(self, number: int) -> list[dict[str, float]]:
        return self.rows[number:]


def report(task: dict[str, Any], row: dict[str, float]) -> None:
    """Tell Ray Train, and from rank 0 the process that waits, how an epoch went."""
    ray.train.report(row)
    if "epoch" in row and ray.train.get_context().get_world_rank() == 0:
        task["epochs"].tell.remote(row)


def run(
    loop: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    workers: Workers,
    url: str,
    epochs: int = 0,
    label: str = "",
) -> None:
    """Run ``loop(config)`` on every worker until all return, and show the epochs that `report` tells of.

    Args:
        url: folder for Ray Train's own files; removed when all went well.
        epochs: that may come, at most.
        label: what is shown of them.

    Raises:
        RayadError: the one that a worker raised.
    """
    url = storage.absolute(url)
    storage.remove(url)
    told = ray.remote(num_cpus=0)(_Epochs).remote()
    trainer = TorchTrainer(
        _Guarded(loop, url),
        train_loop_config=config | {"epochs": told},
        torch_config=TorchConfig(backend="nccl" if workers.gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers.number, use_gpu=workers.gpu),
        run_config=RunConfig(
            name="run", storage_path=url, failure_config=FailureConfig(max_failures=workers.max_failures)
        ),
    )
    try:
        with _shown(told, epochs, label):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause(url, error) from error
    storage.remove(url)


def sync() -> Distributed:
    """The seam of this worker."""
    context = ray.train.get_context()
    return Distributed(context.get_world_rank(), context.get_world_size())


@contextmanager
def _shown(told: Any, epochs: int, label: str) -> Iterator[None]:
    """Show the epochs from another thread while this one waits for Ray Train."""
    over = threading.Event()

    def watch() -> None:
        seen = 0
        with progress(epochs, label) as step:
            while True:
                last = over.wait(1)
                for row in ray.get(told.after.remote(seen)):
                    seen += 1
                    step(f"validation {row['validation']:.5g}" if "validation" in row else "")
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
    """A worker's loop that writes down why it failed: when one worker stops, what Ray tells of it is a lost peer."""

    loop: Callable[[dict[str, Any]], None]
    url: str

    def __call__(self, config: dict[str, Any]) -> None:
        try:
            self.loop(config)
        except RayadError as error:
            storage.write_json(storage.join(self.url, "failed.json"), {type(error).__name__: str(error)})
            raise


def _cause(url: str, error: BaseException) -> RayadError:
    """The error that a worker wrote down, or else what Ray says."""
    written = storage.join(url, "failed.json")
    if storage.exists(written):
        ((kind, message),) = storage.read_json(written).items()
        return errors.named(kind, message)
    last = [line for line in str(error).splitlines() if line.strip()][-1]
    return TrainingError(f"training on Ray failed: {last.strip()}")
