"""In which order patches are learned from: it follows from (seed, epoch, rank) alone.

The order of an epoch is one permutation for all workers: shards are shuffled, then taken in windows of a
few shards, and the rows of a window are shuffled together, so memory is bounded whatever the corpus.
Position p of that order belongs to global batch p // B; rank r of W takes the r-th of W equal parts of
each. With a fixed global batch every number of workers therefore learns from the same batches.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from rayad.errors import OptionError
from rayad.patches.corpus import Stored

Read = Callable[[str], Stored]


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

    def check(self, world: int) -> None:
        """OptionError unless the workers can share a global batch evenly."""
        if self.batch % world:
            raise OptionError(f"the global batch of {self.batch} does not divide over {world} workers")

    def members(self, epoch: int, window: int) -> list[tuple[str, int]]:
        """The shards of a window, with their numbers of patches."""
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))
        chosen = shuffled[window * self.window : (window + 1) * self.window]
        return [self.shards[i] for i in chosen]

    def rows(self, epoch: int, window: int, rank: int, world: int) -> Int64[np.ndarray, " n"]:
        """Which rows of the window's concatenated shards the rank takes, in its order."""
        before = sum(n for w in range(window) for _, n in self.members(epoch, w))
        n = sum(n for _, n in self.members(epoch, window))
        shuffled = np.random.default_rng([self.seed, epoch, window]).permutation(n)
        position = before + np.arange(n)
        part = position % self.batch // (self.batch // world)
        mine = (part == rank) & (position < self.steps * self.batch)
        return shuffled[mine]

    def load(self, read: Read, epoch: int, window: int, rank: int, world: int) -> Stored:
        """The rank's patches of a window, in its order; each shard is read once, from its beginning to its end."""
        members, rows = self.members(epoch, window), self.rows(epoch, window, rank, world)
        place = np.full(sum(n for _, n in members), -1)
        place[rows] = np.arange(len(rows))
        loaded: Stored | None = None
        for name, n in members:
            patches, (goes, place) = read(name), np.split(place, [n])
            if loaded is None:
                loaded = np.empty((len(rows), *patches.shape[1:]), patches.dtype)
            mine = goes >= 0
            loaded[goes[mine]] = patches if mine.all() else patches[mine]
        assert loaded is not None  # a window has shards
        return loaded

    def batches(self, read: Read, epoch: int, rank: int = 0, world: int = 1) -> Iterator[Stored]:
        """The rank's parts of the epoch's global batches; a thread reads the next window while one is learned from."""
        self.check(world)
        size, rest = self.batch // world, None
        for loaded in _ahead(lambda window: self.load(read, epoch, window, rank, world), range(self.windows)):
            if rest is not None:
                lacking = size - len(rest)
                rest, loaded = np.concatenate([rest, loaded[:lacking]]), loaded[lacking:]
                if len(rest) < size:
                    continue
                yield rest
            whole = len(loaded) // size * size
            yield from loaded[:whole].reshape(-1, size, *loaded.shape[1:])
            rest = loaded[whole:].copy()  # a view would keep the window


def _ahead(function: Callable[[int], Stored], arguments: Iterable[int]) -> Iterator[Stored]:
    """The function of each argument in turn; a thread is one ahead."""
    with ThreadPoolExecutor(1) as pool:
        before: Future[Stored] | None = None
        for argument in arguments:
            after = pool.submit(function, argument)
            if before:
                yield before.result()
            before = after
        if before:
            yield before.result()
