"""The reading order: every worker count learns from the same global batches."""

import numpy as np
import pytest

from rayad.errors import OptionError
from rayad.patches.order import Order

SHARDS = tuple((f"s{i}", n) for i, n in enumerate([7, 5, 9, 4, 6]))
START = dict(zip([s for s, _ in SHARDS], np.cumsum([0, 7, 5, 9, 4]), strict=True))


def read(name: str) -> np.ndarray:
    """Patches whose every pixel is the patch's number in the corpus."""
    n = dict(SHARDS)[name]
    return np.broadcast_to((START[name] + np.arange(n))[:, None, None], (n, 64, 64)).astype(np.uint16)


def numbers(order: Order, epoch: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    return [batch[:, 0, 0].tolist() for batch in order.batches(read, epoch, rank, world)]


def test_an_epoch_sees_every_patch_once_but_for_the_last_partial_batch():
    order = Order(SHARDS, batch=8, seed=3, window=2)
    seen = [p for batch in numbers(order, epoch=0) for p in batch]
    assert len(seen) == len(set(seen)) == 24


@pytest.mark.parametrize("world", [2, 4])
def test_workers_share_the_global_batches_of_one(world: int):
    order = Order(SHARDS, batch=8, seed=3, window=2)
    alone = numbers(order, epoch=5)
    shared = zip(*(numbers(order, 5, rank, world) for rank in range(world)), strict=True)
    assert [[p for part in parts for p in part] for parts in shared] == alone


def test_epochs_and_seeds_differ_and_repeat():
    order = Order(SHARDS, batch=8, seed=3)
    assert numbers(order, 1) == numbers(order, 1)
    assert numbers(order, 1) != numbers(order, 2)
    assert numbers(order, 1) != numbers(Order(SHARDS, batch=8, seed=4), 1)


def test_impossible_batches_are_refused():
    with pytest.raises(OptionError, match="more than the 31 patches"):
        Order(SHARDS, batch=32)
    with pytest.raises(OptionError, match="does not divide over 3"):
        Order(SHARDS, batch=8).check(3)
