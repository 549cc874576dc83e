"""Learning by Ray Train, whose workers agree through torch.distributed; see `Pool.learn`."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor

from rayad import storage
from rayad.errors import RayadError, TrainingError
from rayad.fit import Loop, Member
from rayad.on_ray import metrics
from rayad.pool import EpochRows, EpochsShown, Fault, Workers
from rayad.process import listening, same_signal
from rayad.progress import Row
from rayad.terminal import progress_bar


def learn(workers: Workers, loop: Loop, task: dict[str, Any], url: str, epochs: int, label: str) -> list[Fault]:
    """A run of Ray Train, whose epochs are shown; see `Pool.learn`."""
    url = storage.absolute(url)
    storage.remove(url)
    epoch_rows = ray.remote(num_cpus=0, max_restarts=-1)(EpochRows).remote()
    faults_url = storage.join(url, "faults")
    trainer = TorchTrainer(
        _Learning(loop, label),
        train_loop_config={"task": task, "epochs": epoch_rows},
        torch_config=_Meeting(backend="nccl" if workers.gpu >= 1 else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(workers.least, workers.number) if workers.least else workers.number,
            use_gpu=bool(workers.gpu),
            resources_per_worker=workers.resources,
        ),
        run_config=RunConfig(
            name="run",
            storage_path=url,
            failure_config=FailureConfig(max_failures=workers.max_failures),
            callbacks=[_Faults(faults_url, label)],
        ),
    )
    try:
        with same_signal(signal.SIGINT), _shown(epoch_rows, epochs, f"learning {label}"):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise failed(error) from error
    if isinstance(result.return_value, RayadError):
        raise result.return_value
    faults = [Fault(**storage.read_json(file)) for file in _listed(faults_url)]
    storage.remove(url)
    return faults


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
    with listening(address) as probe:
        return address, probe.getsockname()[1]


def _meet(rank: int, world: int, address: str, port: int, backend: str, timeout: timedelta) -> None:
    """Join the process group, through a store that the first worker keeps."""
    master = {}
    if rank == 0:
        master["master_listen_fd"] = listening(address, port).detach()
    store = dist.TCPStore(address, port, world, rank == 0, timeout, **master)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


class _Faults(UserCallback):
    """Writes faults down, one line each, and counts them; runs in the process that leads the workers."""

    def __init__(self, url: str, stage: str) -> None:
        self.url, self.stage = url, stage

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in sorted(worker_exceptions.items()):
            now = datetime.now(UTC)
            fault = asdict(Fault(now.isoformat(timespec="seconds"), self.stage, f"worker {rank}: {_last_line(error)}"))
            storage.write_json(storage.join(self.url, f"{now.timestamp():.6f}-{rank}.json"), fault)
            metrics.count("faults", 1, stage=self.stage)


def _listed(url: str) -> list[str]:
    return storage.listing(url) if storage.exists(url) else []


def _last_line(error: BaseException) -> str:
    """Its last line; of memory that was used up, where Ray's last line is a hint, what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("running low on memory" in line for line in lines):
        return "the memory of a node was used up, so Ray killed processes"
    return lines[-1] if lines else repr(error)


@contextmanager
def _shown(epoch_rows: Any, epochs: int, label: str) -> Iterator[None]:
    """Show the epochs from another thread while this one waits for Ray Train."""
    over = threading.Event()

    def watch() -> None:
        with progress_bar(epochs, label) as step:
            show = EpochsShown(step)
            while True:
                last = over.wait(1)
                with suppress(RayActorError, OutOfMemoryError):  # it is lost, and another comes
                    for row in ray.get(epoch_rows.take.remote()):
                        show(row)
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


def failed(error: BaseException) -> RayadError:
    """The error that a worker raised, or else what Ray says: when one stops, the others tell of a lost peer."""
    for failure in getattr(error, "worker_failures", {}).values():
        if isinstance(failure, RayadError):
            return failure
    return TrainingError(f"training on Ray failed: {_last_line(error)}; the same command goes on where it stopped")
