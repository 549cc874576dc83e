"""Where the work of a stage runs: a `Pool`, which is this process (`Here`) or a Ray cluster (rayad/on_ray/pool.py).

A stage maps a function over items, or learns on several workers that agree with each other; it needs to know nothing
else of where it runs, and its results are the same everywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Protocol, runtime_checkable

from rayad.errors import OptionError
from rayad.options import Amount, GPUs, Minutes, Within
from rayad.terminal import progress_bar


@dataclass(frozen=True)
class Workers:
    """Number of processes that learn, and the resources of each."""

    number: Annotated[int, Within(1, 100_000)] = 2
    """Processes that Ray Train starts; each takes an equal part of every global batch. A single one without a GPU,
    where the command starts its own Ray, is the command's own process: that saves ten seconds."""
    gpu: GPUs = 0.0
    """GPUs of each process, such as 1, or 0.25 where four share one; 0: CPUs alone (never run on a GPU so far)."""
    cpus: Annotated[float, Within(0, 100_000)] = 1.0
    """Logical CPUs of each process."""
    least: Annotated[int, Within(0, 100_000)] = 0
    """Fewest processes to go on with when nodes are lost; more join when nodes come back; 0: always all of them."""
    max_failures: Amount = 3
    """Number of times that lost workers are replaced before the run ends; each time it goes on from its checkpoint."""
    wait_minutes: Minutes = 0.0
    """Minutes to wait for an autoscaling cluster to provide the resources; 0: they must be there already."""

    def __post_init__(self) -> None:
        if self.number < 1 or not 0 <= self.least <= self.number:
            raise OptionError(f"workers are at least 1, and `least` is no more than they: {self.number}, {self.least}")
        if self.cpus < 0 or self.max_failures < 0 or not self.wait_minutes >= 0:
            raise OptionError("cpus, max_failures and wait_minutes of workers must be at least 0")

    @property
    def counts(self) -> range:
        """Numbers of workers that the run may have."""
        return range(self.least or self.number, self.number + 1)

    @property
    def resources(self) -> dict[str, float]:
        """What each takes of a node, as Ray names it."""
        return {"CPU": self.cpus} | ({"GPU": self.gpu} if self.gpu else {})


@dataclass(frozen=True)
class Fault:
    """Workers that were lost or failed while they did something."""

    when: str
    """UTC, ISO 8601."""
    stage: str
    error: str


class EpochRows:
    """What one process tells of its epochs, for another that waits; a process that holds it alone needs no torch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def tell(self, row: dict[str, float]) -> None:
        """Keep the row of an epoch."""
        self.rows.append(row)

    def take(self) -> list[dict[str, float]]:
        """The rows that nobody has taken yet."""
        rows, self.rows = self.rows, []
        return rows


class EpochsShown:
    """Moves a bar on by the rows of epochs; what an interrupted call did counts too."""

    def __init__(self, step: Callable[[str, int], None]) -> None:
        self.step, self.started = step, False

    def __call__(self, row: dict[str, float]) -> None:
        if "epoch" in row:
            done = 1 if self.started else int(row["epoch"])
            self.step(f"validation {row['validation']:.5g}" if "validation" in row else "", done)
            self.started = True


@runtime_checkable
class Mapper(Protocol):
    """Where the work of a stage runs that only maps."""

    @property
    def device(self) -> str:
        """Where torch works, "cuda" or "cpu": in a loop, and in work that is a class."""
        ...

    def map(
        self,
        work: Callable[..., Any],
        items: Sequence[Any],
        label: str,
        shared: tuple = (),
        lost: Callable[[str, Any], Any] | None = None,
    ) -> Iterator[Any]:
        """The results of ``work(*shared, item)``, in the order of the items, as they are known.

        Args:
            work: a function; or a class, made by ``work(*shared)`` and then called with each item, whose processes take
                GPUs where the pool has them. Where such a class has ``prepare(*shared, item)`` too, processes without
                GPUs call that ahead of those with one; the call's second argument returns, or raises, what came of it.
            label: what is done, for whoever waits.
            shared: what all calls need.
            lost: ``lost(why, item)`` is the result of an item whose process ended, or was ended for the memory that it
                took, each time; None: that is raised.

        Raises:
            RayadError: the one that a call raised; no more are made then.
        """
        ...


@runtime_checkable
class Pool(Mapper, Protocol):
    """Where the work of any stage runs."""

    @property
    def workers(self) -> Workers:
        """How many learn together."""
        ...

    def learn(
        self, loop: Callable[[dict[str, Any], Any], None], task: dict[str, Any], url: str, epochs: int, label: str
    ) -> list[Fault]:
        """Run ``loop(task, member)`` on every worker until all return.

        Args:
            loop: given a `rayad.fit.Member`.
            url: folder for the pool's own files, removed when all went well.
            epochs: that may come, at most.
            label: what is learned: "cae", "spn".

        Returns:
            What went wrong on the way and was overcome.

        Raises:
            RayadError: the one that a worker raised.
            OptionError: there is not what the workers need.
        """
        ...

    def count(self, name: str, value: float, **tags: str) -> None:
        """Add to a counter that dashboards show, see rayad/on_ray/metrics.py."""
        ...


@dataclass(frozen=True)
class Here:
    """This process: one call after the other, and one worker that learns.

    Raises:
        OptionError: a GPU that this machine does not have.
    """

    device: str = "cpu"
    """Where torch works."""
    workers: Workers = field(default=Workers(number=1), init=False)

    def __post_init__(self) -> None:
        if self.device == "cuda":
            import torch  # which takes seconds

            if not torch.cuda.is_available():
                raise OptionError("a GPU was asked for, but torch finds none on this machine")

    def map(
        self,
        work: Callable[..., Any],
        items: Sequence[Any],
        label: str,
        shared: tuple = (),
        lost: Callable[[str, Any], Any] | None = None,
    ) -> Iterator[Any]:
        """As `Mapper.map`; nothing is lost, since a process that ends ends all."""
        call = work(*shared) if isinstance(work, type) else partial(work, *shared)
        with progress_bar(len(items), label) as step:
            for item in items:
                with _one_thread():
                    result = call(item)
                yield result
                step()

    def learn(
        self, loop: Callable[[dict[str, Any], Any], None], task: dict[str, Any], url: str, epochs: int, label: str
    ) -> list[Fault]:
        """As `Pool.learn`."""
        import torch  # which takes seconds, and what does not learn needs none

        from rayad.fit import ALONE, Member

        with progress_bar(epochs, f"learning {label}") as step, _one_thread():
            loop(task, Member(ALONE, torch.device(self.device), EpochsShown(step)))
        return []

    def count(self, name: str, value: float, **tags: str) -> None:
        """Nobody counts."""


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch add in the order of one thread, as workers of a cluster do: the numbers are the same."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
