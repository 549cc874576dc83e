"""Rows that several workers hold, each its share: together, in the order of the workers, they are the training rows."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rayad.fit import Sync
from rayad.tensors import Latents


@dataclass(frozen=True)
class Holding:
    """Which of all rows a worker holds: those from ``first``, as many as ``number``."""

    first: int
    number: int
    total: int

    def places(self, rows: Int64[Tensor, " k"]) -> Int64[Tensor, " h"]:
        """Where the worker has these rows, which are numbered among all; those that it does not hold are left out."""
        places = rows - self.first
        return places[(places >= 0) & (places < self.number)]


def held(z: Tensor, sync: Sync) -> Holding:
    """Which of the rows of all workers these are."""
    numbers = torch.zeros(sync.world, dtype=torch.int64, device=z.device)
    numbers[sync.rank] = len(z)
    sync.sum_([numbers])
    return Holding(int(numbers[: sync.rank].sum()), len(z), int(numbers.sum()))


def chosen(z: Latents, rows: Int64[Tensor, " k"], sync: Sync) -> Float[Tensor, "k m"]:
    """Some rows of all workers, on each of them.

    Args:
        z: the worker's share.
        rows: their numbers among the rows of all; the same on every worker.
    """
    if sync.world == 1:
        return z[rows.to(z.device)]
    share = held(z, sync)
    places = rows.to(z.device) - share.first
    is_held = (places >= 0) & (places < len(z))
    selected = z.new_zeros(len(rows), z.shape[1])
    selected[is_held] = z[places[is_held]]
    sync.sum_([selected])
    return selected


def added(values: Float[Tensor, "*shape"], sync: Sync) -> Float[Tensor, "*shape"]:
    """The sum over all workers."""
    sync.sum_([values])
    return values
