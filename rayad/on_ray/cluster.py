"""Where the work runs: a cluster made for this command, or the one that an address names."""

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import ray
import ray.data
from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import (
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    OwnerDiedError,
    RayError,
    RaySystemError,
    RpcError,
)
from ray.job_config import JobConfig

from rayad import bounds, storage
from rayad.errors import ClusterError
from rayad.imaging import plausibility
from rayad.leftovers import private_folder
from rayad.private import await_cluster, given, keep_private
from rayad.process import environment, muted, same_signal

LEVEL, SILENT = "RAY_BACKEND_LOG_LEVEL", "fatal"
"""Variable of the level above which Ray's own code says things on the terminal; what matters is raised."""
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
"""What Ray says of its own accord: nothing but errors."""
STORE_BYTES = 500_000_000
"""Of the object store of a cluster that is made here."""
CORES = "rayad_cores"
"""A resource of a Ray of a command's own: so many processes at a time are worth it; it has more logical CPUs."""
STARTS, STARTING_S = 2, 120
"""How often, and how long each time, a Ray of a command's own is waited for."""
WATCH_S = 1.0
"""From one look at Ray's process on this machine to the next."""
REACHED_S = 15.0
"""How long an address is tried at which nobody listens."""
READERS, READING_S = ("StreamingExecutor", "iter_threaded"), 5.0
"""Threads of Ray Data, and how long is waited until they end."""
LOST = (LocalRayletDiedError, RaySystemError, RpcError, ActorUnavailableError, OwnerDiedError, NodeDiedError)
"""What Ray raises when the head or this node is gone."""


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
        with same_signal(signal.SIGTERM), muted(), environment(**{LEVEL: os.environ.get(LEVEL) or SILENT}):
            if address:
                _connect(address)
            else:
                _start(f"{folder}/ray", cpus)
        quiet_data()
        try:
            with _told_if_lost(address), _watched():
                yield
        finally:
            _await_readers()
            ray.shutdown()


def _await_readers() -> None:
    """Wait for the threads in which Ray Data reads ahead: one that asks a Ray that is over ends this process at once.

    Where the last rows are not read, as after Ctrl-C, they outlive the iteration.
    """
    until = time.monotonic() + READING_S
    for thread in threading.enumerate():
        if thread.name.startswith(READERS):
            thread.join(max(0, until - time.monotonic()))


def _connect(address: str) -> None:
    """To a running cluster, whose workers get this command's settings; ClusterError where that fails."""
    await_cluster(address, REACHED_S)
    environment = {bounds.VARIABLE: json.dumps(asdict(bounds.current())), storage.EXPECTED: "1"}
    environment[plausibility.VARIABLE] = ",".join(plausibility.forced())
    runtime: dict[str, Any] = {"env_vars": environment}
    if keys := {name: os.environ[name] for name in storage.KEYS if name in os.environ}:
        runtime["worker_process_setup_hook"] = _handing_over(keys)
    try:
        ray.init(address=address, runtime_env=runtime, job_config=_Job(), **QUIET)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        ray.shutdown()
        raise ClusterError(f"cannot connect to the Ray cluster at {address}: {_first_line(error)}") from error


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
    except (*LOST, _NodeLost) as error:
        whose = f"at {address}" if address else "of this command"
        raise ClusterError(
            f"the Ray cluster {whose} was lost: {_first_line(error)}; the same command goes on where it stopped"
        ) from error


class _NodeLost(BaseException):
    """Ray's process on this machine has ended; no Exception, which what waits for Ray might catch."""


@contextmanager
def _watched() -> Iterator[None]:
    """Raise `_NodeLost` in the main thread when Ray's process on this machine has ended.

    Ray Data counts what it computes then as errors of single blocks, and Ray ends this process without a word.
    """
    mine = ray.get_runtime_context().get_node_id()
    node = next((node for node in ray.nodes() if node["NodeID"] == mine), None)
    if node is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()
    place = node["NodeManagerAddress"], node["NodeManagerPort"]
    before = signal.signal(signal.SIGUSR1, _raise_lost)
    watch = threading.Thread(target=_watch, args=(place, over), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()  # its signal would end this process where nobody hears it any more
        signal.signal(signal.SIGUSR1, before or signal.SIG_DFL)


def _watch(place: tuple[str, int], over: threading.Event) -> None:
    """Tell the main thread when nobody listens there any more, twice in a row."""
    refused = 0
    while refused < 2:
        if over.wait(WATCH_S):
            return
        try:
            socket.create_connection(place, REACHED_S).close()
            refused = 0
        except ConnectionRefusedError:
            refused += 1
        except OSError:
            continue  # a machine that is busy
    if not over.is_set():
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def _raise_lost(number: int, frame: Any) -> None:
    raise _NodeLost("its process on this machine ended")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _start(folder: str, cpus: int) -> None:
    """Start a Ray, and again if that takes too long, as on a machine that is busy or has just been switched on."""
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(STARTING_S))
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process that waits for its node to be taken
    for attempt in range(STARTS):
        try:
            return _start_once(f"{folder}{attempt or ''}", cpus)
        except Exception as error:
            ray.shutdown()
            if attempt + 1 == STARTS:
                raise ClusterError(
                    f"Ray failed to start {STARTS} times: {_first_line(error)}; check memory, disk and cores"
                ) from error


def _start_once(folder: str, cpus: int) -> None:
    """A Ray that this process alone uses; Ray lets everybody enter its folder, so it lies in a private one."""
    keep_private()
    cores = os.cpu_count() or 1
    Config.initialize("")  # Ray may have been imported before
    AuthenticationTokenLoader.instance().reset_cache()
    with environment(**{storage.EXPECTED: "1"}):  # of all processes that begin here, not of this one
        ray.init(
            address="local",
            # More logical CPUs than cores: a waiting coordinator must not keep the work from a core.
            num_cpus=cpus or cores + 4,
            resources={CORES: cpus or cores},
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            _temp_dir=folder,
            job_config=_Job(),
            **QUIET,
        )


class _Job(JobConfig):
    """Whose workers look for modules nowhere else than this process does. Ray tells them to look in the folder that the
    command is given in too, and first: a file pandas.py among a stranger's images would be run."""

    def _serialize(self) -> Any:
        places = {os.path.abspath(place) for place in sys.path}
        self._py_driver_sys_path = [place for place in self._py_driver_sys_path if place in places]
        return super()._serialize()


def quiet_data() -> None:
    """No bars and no lines of Ray Data."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised besides
