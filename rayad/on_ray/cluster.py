"""Where the work runs: a cluster made for this command, or the one that an address names."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import RayTaskError
from tqdm import tqdm

from rayad import errors
from rayad.errors import RayadError
from rayad.leftovers import private_folder
from rayad.on_ray.resources import given, keep_private

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
"""What Ray says of its own accord: nothing but errors."""
STORE_BYTES = 500_000_000
"""Of the object store of a cluster that is made here."""
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
        with _same_signals():
            if address:
                ray.init(address=address, **QUIET)
            else:
                _start(f"{folder}/ray", cpus)
        quiet_data()
        try:
            yield
        finally:
            ray.shutdown()


def _start(folder: str, cpus: int) -> None:
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
def _same_signals() -> Iterator[None]:
    """Keep what this process does at SIGTERM, if it does something of its own: ray.init() sets what Ray does."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def quiet_data() -> None:
    """No bars and no lines of Ray Data."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised besides


@contextmanager
def own_errors() -> Iterator[None]:
    """What a task raised on purpose is raised here as itself, without Ray's account of it."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, RayadError):
            raise error.cause from None
        raise


@dataclass(frozen=True)
class _Mapped:
    """A Ray Data map that calls a function for each number; of an exception only its text would come back."""

    function: Callable[[int], Any]

    def __call__(self, batch: Any) -> dict[str, Any]:
        try:
            for number in batch["id"]:
                self.function(int(number))
        except RayadError as error:
            return {"kind": [type(error).__name__], "message": [str(error)]}
        return {"kind": [""], "message": [""]}


def each(function: Callable[[int], Any], number: int, label: str) -> None:
    """Call ``function(i)`` for every i below a number, a task each, on Ray Data.

    Raises:
        RayadError: the one that a task raised; no more tasks begin then.
    """
    done = ray.data.range(number, override_num_blocks=number).map_batches(_Mapped(function), batch_size=1)
    with progress(number, label) as step:
        for row in done.iter_rows():
            if row["kind"]:
                raise errors.named(row["kind"], row["message"])
            step()


def tasks(
    function: Callable[..., Any],
    arguments: Iterable[tuple],
    total: int,
    label: str,
    shared: tuple = (),
    gpus: int = 0,
) -> Iterator[Any]:
    """Run ``function(*shared, *arguments_i)`` as Ray tasks; yield the results in the order of the arguments.

    At most a few tasks a core wait, so arguments and results of a long run do not pile up; but always some, for which
    an autoscaling cluster grows.

    Args:
        shared: what every task needs; stored once in the object store.
        gpus: that every task takes.

    Raises:
        RayadError: the one that a task raised.
    """
    remote = ray.remote(function).options(num_gpus=gpus)
    references = [ray.put(s) for s in shared]
    pending: list[ray.ObjectRef] = []
    with progress(total, label) as step, own_errors():
        for argument in arguments:
            pending.append(remote.remote(*references, *argument))
            if len(pending) >= max(WAITING, 2 * int(ray.cluster_resources().get("CPU", 1))):
                yield ray.get(pending.pop(0))
                step()
        for reference in pending:
            yield ray.get(reference)
            step()


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[..., None]]:
    """A bar on a terminal; elsewhere a line every tenth of the way. ``step(said)`` moves it and shows what is said."""
    bar = tqdm(total=total, desc=label, disable=not sys.stderr.isatty(), leave=False)
    done = 0

    def step(said: str = "") -> None:
        nonlocal done
        done += 1
        bar.set_postfix_str(said, refresh=False)
        bar.update()
        if bar.disable and (done == total or done % max(1, total // 10) == 0):
            print(f"{label}: {done} of {total} {said}".rstrip(), file=sys.stderr, flush=True)

    try:
        yield step
    finally:
        bar.close()
