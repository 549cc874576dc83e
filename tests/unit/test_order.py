"""The reading order: every number of workers learns from the same global batches, and each reads its lanes alone."""

import numpy as np
import pytest

from rayad.errors import OptionError
from rayad.patches.corpus import ALL_LANES, LANES, bounds_of
from rayad.patches.order import Lanes, Order, in_turn, lanes_of

SHARDS = tuple((f"s{i}", n) for i, n in enumerate([70, 53, 90, 41, 7, 64]))
START = dict(zip([s for s, _ in SHARDS], np.cumsum([0, 70, 53, 90, 41, 7]), strict=True))


def read(name: str, lanes: Lanes) -> np.ndarray:
    """Patches whose every pixel is the patch's number in the corpus."""
    n = dict(SHARDS)[name]
    first, last = bounds_of(n)[list(lanes)]
    return np.broadcast_to((START[name] + np.arange(first, last))[:, None, None], (last - first, 64, 64)).astype(
        np.uint16
    )


def numbers(order: Order, epoch: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    return [batch[:, 0, 0].tolist() for batch in order.batches(read, epoch, rank, world)]


def test_an_epoch_sees_every_patch_once_but_for_the_last_partial_batch():
    order = Order(SHARDS, batch=8, seed=3, window=2)
    batches = numbers(order, epoch=0)
    seen = [p for batch in batches for p in batch]
    assert {len(batch) for batch in batches} == {8}
    assert len(seen) == len(set(seen)) == 320
    assert set(seen) < set(range(325))


@pytest.mark.parametrize("world", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("batch", [8, 64])
def test_workers_share_the_global_batches_of_one(world: int, batch: int):
    order = Order(SHARDS, batch=batch, seed=3, window=2)
    alone = numbers(order, epoch=5)
    shared = zip(*(numbers(order, 5, rank, world) for rank in range(world)), strict=True)
    assert [[p for part in parts for p in part] for parts in shared] == alone


@pytest.mark.parametrize("world", [1, 2, 4, 16])
def test_a_worker_reads_its_part_of_the_corpus_and_no_other(world: int):
    order, seen = Order(SHARDS, batch=16), []
    for rank in range(world):
        rows = 0

        def counted(name: str, lanes: Lanes) -> np.ndarray:
            nonlocal rows
            patches = read(name, lanes)
            rows += len(patches)
            return patches

        assert len(list(order.batches(counted, 0, rank, world))) == order.steps
        seen.append(rows)
    assert sum(seen) == 325
    assert max(seen) - min(seen) <= len(SHARDS) * LANES // world


def test_every_batch_has_rows_of_every_lane_in_its_share():
    order = Order(SHARDS, batch=64)
    turns = np.stack(list(order.turns()))
    sizes = sum(np.diff(bounds_of(n)) for _, n in SHARDS)
    assert (turns.sum(1) == 64).all()
    assert np.abs(turns - 64 * sizes / 325).max() <= 2
    assert (turns.cumsum(0) <= sizes).all()


def test_patches_that_are_judged_are_the_same_for_every_number_of_workers_and_each_comes_once():
    alone = [batch[:, 0, 0].tolist() for batch in in_turn(read, SHARDS, 20)]
    assert sorted(p for batch in alone for p in batch) == list(range(325))
    assert max(map(len, alone)) <= 20 + LANES
    for world in (2, 5, 16):
        parts = zip(*(in_turn(read, SHARDS, 20, rank, world) for rank in range(world)), strict=True)
        assert [[int(p) for part in batch for p in part[:, 0, 0]] for batch in parts] == alone


def test_epochs_and_seeds_differ_and_repeat():
    order = Order(SHARDS, batch=8, seed=3)
    assert numbers(order, 1) == numbers(order, 1)
    assert numbers(order, 1) != numbers(order, 2)
    assert numbers(order, 1) != numbers(Order(SHARDS, batch=8, seed=4), 1)


def test_impossible_batches_are_refused():
    with pytest.raises(OptionError, match="more than the 325 patches"):
        Order(SHARDS, batch=326)
    with pytest.raises(OptionError, match="16 lanes, so at most so many workers share its reading, not 17"):
        lanes_of(0, 17)
    assert lanes_of(0, 1) == ALL_LANES
