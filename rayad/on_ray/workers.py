"""Run a function on N workers of Ray Train, and let them agree through torch.distributed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor

from rayad import errors, storage
from rayad.errors import RayadError, TrainingError
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


def run(loop: Callable[[dict[str, Any]], None], config: dict[str, Any], workers: Workers, url: str) -> None:
    """Run ``loop(config)`` on every worker until all return.

    Args:
        url: folder for Ray Train's own files; removed when all went well.

    Raises:
        RayadError: the one that a worker raised.
    """
    url = storage.absolute(url)
    storage.remove(url)
    trainer = TorchTrainer(
        _Guarded(loop, url),
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if workers.gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers.number, use_gpu=workers.gpu),
        run_config=RunConfig(
            name="run", storage_path=url, failure_config=FailureConfig(max_failures=workers.max_failures)
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause(url, error) from error
    storage.remove(url)


def sync() -> Distributed:
    """The seam of this worker."""
    context = ray.train.get_context()
    return Distributed(context.get_world_rank(), context.get_world_size())


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
        return getattr(errors, kind)(message)
    last = [line for line in str(error).splitlines() if line.strip()][-1]
    return TrainingError(f"training on Ray failed: {last.strip()}")
