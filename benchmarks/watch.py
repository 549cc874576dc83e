"""What a benchmark looks at while it runs: memory of processes and of Ray's object stores."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

PLASMA = "object_store_memory"


@contextmanager
def looking(look: Callable[[], None]) -> Iterator[None]:
    """Look twice a second, from another thread."""
    over = threading.Event()

    def loop() -> None:
        while not over.wait(0.5):
            look()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def private_bytes(process: psutil.Process) -> int:
    """Memory that the process shares with nobody."""
    return process.memory_full_info().uss


def store_bytes() -> int:
    """What the object stores of all nodes hold."""
    import ray  # which a benchmark keeps private first

    total, free = ray.cluster_resources(), ray.available_resources()
    return int(total.get(PLASMA, 0) - free.get(PLASMA, 0))
