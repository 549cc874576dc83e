"""In which order patches are learned from: it follows from (seed, epoch) alone, whoever shares the reading.

Shards are cut into lanes (rayad/patches/corpus.py); every worker reads neighbouring lanes and no others. In an epoch
the shards are shuffled, then taken in windows of a few; in a window the rows of each lane are shuffled, so memory is
bounded whatever the corpus. A global batch takes rows of all lanes, in the order of the lanes and as many of each as
its share of the corpus, so that every number of workers learns from the same batches.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int64

from rayad.errors import OptionError
from rayad.patches.corpus import LANES, Stored, bounds_of

Lanes = tuple[int, int]
"""Neighbouring lanes: the first, and the one after the last."""
Read = Callable[[str, Lanes], Stored]
"""Gives the patches of some lanes of a shard."""


TURNS = 256
"""Global batches whose turns are worked out at once."""


def lanes_of(rank: int, world: int) -> Lanes:
    """The lanes that a worker reads.

    Raises:
        OptionError: there are more workers than lanes.
    """
    if world > LANES:
        raise OptionError(f"a corpus has {LANES} lanes, so at most so many workers share its reading, not {world}")
    return rank * LANES // world, (rank + 1) * LANES // world


@dataclass(frozen=True)
class Order:
    """The order over the shards of one split."""

    shards: tuple[tuple[str, int], ...]
    """Name and number of patches of each."""
    batch: int = 64
    """Global batch, over all workers; the last patches of an epoch that fill none are left out."""
    seed: int = 0
    window: int = 4
    """Shards whose rows are shuffled together."""

    def __post_init__(self) -> None:
        if self.steps == 0:
            n = sum(count for _, count in self.shards)
            raise OptionError(f"a batch of {self.batch} patches is more than the {n} patches of the corpus")

    @property
    def steps(self) -> int:
        """Global batches an epoch."""
        return sum(count for _, count in self.shards) // self.batch

    @property
    def windows(self) -> int:
        """Windows an epoch."""
        return -(-len(self.shards) // self.window)

    def members(self, epoch: int, window: int) -> list[tuple[str, int]]:
        """The shards of a window, with their numbers of patches."""
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))
        chosen = shuffled[window * self.window : (window + 1) * self.window]
        return [self.shards[i] for i in chosen]

    def turns(self) -> Iterator[Int64[np.ndarray, " l"]]:
        """How many rows each lane gives to each global batch: row k of n comes after (k + 1/2) / n of the epoch."""
        sizes = np.sum([np.diff(bounds_of(count)) for _, count in self.shards], axis=0)
        taken, total = np.zeros(LANES, np.int64), sizes.sum()
        for start in range(0, self.steps, TURNS):
            number = min(TURNS, self.steps - start)
            upper = np.minimum(sizes, (start + number) * self.batch * sizes // total + LANES)  # no lane is further
            lanes = np.repeat(np.arange(LANES), upper - taken)
            times = np.concatenate([(np.arange(*span) + 0.5) / n for *span, n in zip(taken, upper, sizes, strict=True)])
            chosen = lanes[np.lexsort((lanes, times))[: number * self.batch]].reshape(number, self.batch)
            turns = np.stack([np.bincount(batch, minlength=LANES) for batch in chosen])
            taken = taken + turns.sum(0)
            yield from turns

    def load(self, read: Read, epoch: int, window: int, lanes: Lanes) -> list[Stored]:
        """The patches of a window, lane by lane, shuffled; each shard is read once, from its beginning to its end."""
        (first, last), members = lanes, self.members(epoch, window)
        bounds = np.stack([bounds_of(count)[first : last + 1] for _, count in members])
        sizes = np.diff(bounds).sum(0)
        places = [
            np.random.default_rng([self.seed, epoch, window, first + i]).permutation(n) for i, n in enumerate(sizes)
        ]
        loaded: list[Stored] = []
        filled = np.zeros(len(sizes), np.int64)
        for (name, _), rows in zip(members, bounds - bounds[:, :1], strict=True):
            patches = read(name, lanes)
            loaded = loaded or [np.empty((n, *patches.shape[1:]), patches.dtype) for n in sizes]
            for i, (start, end) in enumerate(pairwise(rows)):
                loaded[i][places[i][filled[i] : filled[i] + end - start]] = patches[start:end]
                filled[i] += end - start
        return loaded

    def batches(self, read: Read, epoch: int, rank: int = 0, world: int = 1) -> Iterator[Stored]:
        """The rank's parts of the epoch's global batches; a thread reads the next window while one is learned from."""
        lanes = first, last = lanes_of(rank, world)
        windows = _ahead(lambda window: self.load(read, epoch, window, lanes), range(self.windows))
        buffered = next(windows)
        for turn in self.turns():
            counts = turn[first:last]
            while any(len(patches) < n for patches, n in zip(buffered, counts, strict=True)):
                buffered = [np.concatenate(parts) for parts in zip(buffered, next(windows), strict=True)]
            yield np.concatenate([patches[:n] for patches, n in zip(buffered, counts, strict=True)])
            buffered = [patches[n:] for patches, n in zip(buffered, counts, strict=True)]


def in_turn(
    read: Read, shards: Sequence[tuple[str, int]], batch: int, rank: int = 0, world: int = 1
) -> Iterator[Stored]:
    """The rank's parts of all patches as they lie, a shard after the other in batches of about this size."""
    lanes = first, last = lanes_of(rank, world)
    for name, count in shards:
        patches, bounds = read(name, lanes), bounds_of(count)[first : last + 1]
        starts, sizes, parts = bounds[:-1] - bounds[0], np.diff(bounds), -(-count // batch)
        for part in range(parts):
            ends = zip(starts + sizes * part // parts, starts + sizes * (part + 1) // parts, strict=True)
            yield np.concatenate([patches[start:end] for start, end in ends])


def _ahead(function: Callable[[int], list[Stored]], arguments: Iterable[int]) -> Iterator[list[Stored]]:
    """The function of each argument in turn; a thread is one ahead."""
    with ThreadPoolExecutor(1) as pool:
        current: Future[list[Stored]] | None = None
        for argument in arguments:
            following = pool.submit(function, argument)
            if current:
                yield current.result()
            current = following
        if current:
            yield current.result()
