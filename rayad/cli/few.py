"""Where a command maps whose items may be few: a Ray takes longer to start than they take."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayad.pool import Here, Workers
from rayad.private import given

FEW = 8
"""Items that are done in this process before a Ray would have started."""


@dataclass(frozen=True)
class ForMany:
    """A `Mapper`: the cluster of an address; without one this process for few items, and for many a Ray of its own."""

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
        """As `Mapper.map`."""
        if not items or (len(items) <= FEW and not given(self.address)):
            yield from Here(self.device).map(work, items, label, shared, lost)
            return
        from rayad.on_ray.pool import connected  # which takes seconds

        with connected(self.address, self.workers) as pool:
            yield from pool.map(work, items, label, shared, lost)
