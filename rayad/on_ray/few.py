"""A pool that starts Ray where that pays."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayad.on_ray.private import given
from rayad.pool import Fault, Here, Loop, Workers

FEW = 8
"""Items that are done in this process before a Ray would have started."""


@dataclass(frozen=True)
class ForMany:
    """The cluster of an address; without one, a Ray that is started for many items, and this process for few."""

    address: str = ""
    workers: Workers = field(default_factory=Workers)

    @property
    def device(self) -> str:
        """As of `OnRay`."""
        return "cuda" if self.workers.gpu else "cpu"

    def map(
        self,
        work: Callable[..., Any],
        items: Sequence[Any],
        label: str,
        shared: tuple = (),
        lost: Callable[[str, Any], Any] | None = None,
    ) -> Iterator[Any]:
        """As `Pool.map`."""
        if not items or (len(items) <= FEW and not given(self.address)):
            yield from Here(self.device).map(work, items, label, shared, lost)
            return
        from rayad.on_ray.pool import connected  # which takes seconds

        with connected(self.address, self.workers) as pool:
            yield from pool.map(work, items, label, shared, lost)

    def learn(self, loop: Loop, task: dict[str, Any], url: str, epochs: int, label: str) -> list[Fault]:
        """As `Pool.learn`, on Ray."""
        from rayad.on_ray.pool import connected

        with connected(self.address, self.workers) as pool:
            return pool.learn(loop, task, url, epochs, label)

    def count(self, name: str, value: float, **tags: str) -> None:
        """Nobody counts."""
