"""Workers that are threads of one process."""

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from rayad.fit import Sync


class Shared:
    """A `Sync` of threads in this process."""

    def __init__(self, rank: int, world: int, meet: threading.Barrier, table: list[list[Tensor]]) -> None:
        self.rank, self.world, self.meet, self.table = rank, world, meet, table

    def sum_(self, tensors: list[Tensor]) -> None:
        self.table[self.rank] = [tensor.clone() for tensor in tensors]
        self.meet.wait()
        for target, *parts in zip(tensors, *self.table, strict=True):
            target.copy_(torch.stack(parts).sum(0))
        self.meet.wait()

    def mean_(self, tensors: list[Tensor]) -> None:
        self.sum_(tensors)
        for tensor in tensors:
            tensor /= self.world


def in_threads(world: int, work: Callable[[Sync], object]) -> None:
    meet, table, errors = threading.Barrier(world, timeout=60), [[] for _ in range(world)], []

    def one(rank: int) -> None:
        try:
            work(Shared(rank, world, meet, table))
        except BaseException as error:  # noqa: BLE001, raised again by the test's own thread
            errors.append(error)
            meet.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
