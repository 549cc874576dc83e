"""Where the work runs: a cluster made for this command, or the one that an address names."""

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.data
from ray._private import worker
from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import (
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    OwnerDiedError,
    RayError,
    RaySystemError,
    RayTaskError,
    RpcError,
    WorkerCrashedError,
)
from tqdm import tqdm

from rayad import bounds, errors, storage
from rayad.errors import ClusterError, RayadError
from rayad.imaging import plausibility
from rayad.leftovers import private_folder
from rayad.on_ray.resources import given, keep_private
from rayad.terminal import printable, say

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
"""What Ray says of its own accord: nothing but errors."""
STORE_BYTES = 500_000_000
"""Of the object store of a cluster that is made here."""
STARTS, STARTING_S = 2, 120
"""How often, and how long each time, a Ray of a command's own is waited for."""
REACHED_S = 15.0
"""How long an address is tried at which nobody listens."""
LOST = (LocalRayletDiedError, RaySystemError, RpcError, ActorUnavailableError, OwnerDiedError, NodeDiedError)
"""What Ray raises when the head or this node is gone."""
RETRIES = 3
"""Of a task whose process ended."""
WAITING = 16
"""Tasks that may wait however small the cluster is."""


@contextmanager
def cluster(address: str = "", cpus: int = 0) -> Iterator[None]:
    """Connect to Ray; stop only what was started here.

    Args:
        address: of a running cluster; "" takes RAY_ADDRESS (set inside a submitted job), and where that
            is not set starts a cluster of this process's own that answers nobody else.
        cpus: logical ones of such a cluster; 0: some more than there are cores.
    """
    if ray.is_initialized():
        yield
        return
    address = given(address)
    with nullcontext() if address else private_folder() as folder:
        with same_signal(signal.SIGTERM):
            if address:
                _connect(address)
            else:
                _start(f"{folder}/ray", cpus)
        quiet_data()
        _brief()
        try:
            with _told_if_lost(address):
                yield
        finally:
            ray.shutdown()


def _connect(address: str) -> None:
    """To a running cluster, whose workers get this command's settings; ClusterError where that fails."""
    _await(address)
    environment = {bounds.VARIABLE: json.dumps(asdict(bounds.current()))}
    environment[plausibility.VARIABLE] = ",".join(plausibility.forced())
    runtime: dict[str, Any] = {"env_vars": environment}
    if keys := {name: os.environ[name] for name in storage.KEYS if name in os.environ}:
        runtime["worker_process_setup_hook"] = _handing_over(keys)
    try:
        ray.init(address=address, runtime_env=runtime, **QUIET)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        ray.shutdown()
        raise ClusterError(f"cannot connect to the Ray cluster at {address}: {_first_line(error)}") from error


def _await(address: str) -> None:
    """Wait a while for whoever listens at HOST:PORT; Ray asks for minutes, and says so line by line."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + REACHED_S
    while port.isdigit() and "/" not in host:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), REACHED_S).close()
        except (OSError, OverflowError) as error:
            if time.monotonic() > until or isinstance(error, OverflowError | socket.gaierror):
                raise ClusterError(f"no Ray cluster answers at {address}: {error}") from error
        time.sleep(1)


def _handing_over(keys: dict[str, str]) -> Callable[[], None]:
    """Gives workers that have nothing to open object stores with what this process has; no page of Ray shows it."""

    def hand_over() -> None:
        if not any(name in os.environ for name in keys):
            os.environ.update(keys)

    return hand_over


@contextmanager
def _told_if_lost(address: str) -> Iterator[None]:
    """What Ray raises when it is lost is a ClusterError."""
    try:
        yield
    except LOST as error:
        whose = f"at {address}" if address else "of this command"
        raise ClusterError(
            f"the Ray cluster {whose} was lost: {_first_line(error)}; the same command goes on where it stopped"
        ) from error


def _brief() -> None:
    """Let Ray say of a node that died what happened, without the last twenty lines of its log."""
    told = worker.print_to_stdstream
    if getattr(told, "brief", False):
        return

    def brief(data: dict[str, Any], **options: Any) -> None:
        told(data | {"lines": [line.partition("Last 20 lines")[0].rstrip() for line in data["lines"]]}, **options)

    brief.brief = True  # type: ignore[attr-defined]
    worker.print_to_stdstream = brief


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _start(folder: str, cpus: int) -> None:
    """Start a Ray, and again if that takes too long, as on a machine that is busy or has just been switched on."""
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(STARTING_S))
    for attempt in range(STARTS):
        try:
            return _start_once(f"{folder}{attempt or ''}", cpus)
        except Exception as error:
            ray.shutdown()
            if attempt + 1 == STARTS:
                raise ClusterError(
                    f"Ray did not start, {STARTS} times: {_first_line(error)}; are there memory, disk and cores for it?"
                ) from error


def _start_once(folder: str, cpus: int) -> None:
    """A Ray that this process alone uses; Ray lets everybody enter its folder, so it lies in a private one."""
    keep_private()
    Config.initialize("")  # Ray may have been imported before
    AuthenticationTokenLoader.instance().reset_cache()
    ray.init(
        address="local",
        # More logical CPUs than cores: a waiting coordinator must not keep the work from a core.
        num_cpus=cpus or (os.cpu_count() or 1) + 4,
        include_dashboard=False,
        object_store_memory=STORE_BYTES,
        _temp_dir=folder,
        **QUIET,
    )


@contextmanager
def same_signal(number: signal.Signals) -> Iterator[None]:
    """What this process does at a signal, if it does something of its own, it does again after the block.

    ray.init() sets what Ray does at SIGTERM. A trainer of Ray Train sets what it does at SIGINT and leaves that behind:
    Ctrl-C in a later stage would be told to workers that have ended, and to nobody else.
    """
    before = signal.getsignal(number)
    try:
        yield
    finally:
        if before not in (None, signal.SIG_DFL) and threading.current_thread() is threading.main_thread():
            signal.signal(number, before)


def quiet_data() -> None:
    """No bars and no lines of Ray Data."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised besides


@contextmanager
def own_errors() -> Iterator[None]:
    """What a task raised is raised here as itself; without Ray's account of it, if it was on purpose."""
    try:
        yield
    except RayTaskError as error:
        raise error.cause from (None if isinstance(error.cause, RayadError) else error)


@dataclass(frozen=True)
class _Mapped:
    """A Ray Data map that calls a function for each number; of an exception only its text would come back."""

    function: Callable[[int], Any]

    def __call__(self, batch: Any) -> dict[str, Any]:
        done = {"id": batch["id"], "kind": [""], "message": [""]}
        try:
            for number in batch["id"]:
                self.function(int(number))
        except RayadError as error:
            return done | {"kind": [type(error).__name__], "message": [str(error)]}
        return done


def each(function: Callable[[int], Any], number: int, label: str) -> list[int]:
    """Call ``function(i)`` for every i below a number, a task each, on Ray Data.

    Returns:
        Those i whose task ended its process, or was ended for the memory that it took, each time.

    Raises:
        RayadError: the one that a task raised; no more tasks begin then.
    """
    left = set(range(number))
    with progress(number, label) as step, _errors_allowed():  # a Dataset keeps the context that it was made in
        numbers = ray.data.range(number, override_num_blocks=number)
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # Ray has no other way to say it
            mapped = numbers.map_batches(_Mapped(function), batch_size=1, max_retries=RETRIES)
        for row in mapped.iter_rows():
            if row["kind"]:
                raise errors.named(row["kind"], row["message"])
            left.discard(row["id"])
            step()
    return sorted(left)


@contextmanager
def _errors_allowed() -> Iterator[None]:
    """Let Ray Data go on without the tasks that fail."""
    context = ray.data.DataContext.get_current()
    before, context.max_errored_blocks = context.max_errored_blocks, -1
    try:
        yield
    finally:
        context.max_errored_blocks = before


def tasks(
    function: Callable[..., Any],
    arguments: Iterable[tuple],
    total: int,
    label: str,
    shared: tuple = (),
    gpus: int = 0,
    lost: Callable[..., Any] | None = None,
) -> Iterator[Any]:
    """Run ``function(*shared, *arguments_i)`` as Ray tasks; yield the results in the order of the arguments.

    At most a few tasks a core wait, so arguments and results of a long run do not pile up; but always some, for which
    an autoscaling cluster grows.

    Args:
        shared: what every task needs; stored once in the object store.
        gpus: that every task takes.
        lost: ``lost(why, *arguments_i)`` is the result where a task ended its process, or was ended for the memory
            that it took, each time; None: that is raised.

    Raises:
        RayadError: the one that a task raised.
    """
    remote = ray.remote(function).options(num_gpus=gpus, max_retries=RETRIES)
    references = [ray.put(s) for s in shared]
    pending: list[tuple[tuple, ray.ObjectRef]] = []

    def result(argument: tuple, reference: ray.ObjectRef) -> Any:
        try:
            return ray.get(reference)
        except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
            if lost is None:
                raise
            return lost(f"the process that worked on it ended, {RETRIES + 1} times: {type(error).__name__}", *argument)

    with progress(total, label) as step, own_errors():
        for argument in arguments:
            pending.append((argument, remote.remote(*references, *argument)))
            if len(pending) >= max(WAITING, 2 * int(ray.cluster_resources().get("CPU", 1))):
                yield result(*pending.pop(0))
                step()
        for waiting in pending:
            yield result(*waiting)
            step()


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[..., None]]:
    """A bar on a terminal; elsewhere a line every tenth of the way. ``step(said, by)`` moves it and says something."""
    bar = tqdm(total=total, desc=printable(label), disable=not sys.stderr.isatty(), leave=False)
    done = 0

    def step(said: str = "", by: int = 1) -> None:
        nonlocal done
        done += by
        bar.set_postfix_str(printable(said), refresh=False)
        bar.update(by)
        tenth = max(1, total // 10)
        if bar.disable and (done == total or done // tenth > (done - by) // tenth):
            say(f"{label}: {done} of {total} {said}".rstrip(), sys.stderr)

    try:
        yield step
    finally:
        bar.close()
