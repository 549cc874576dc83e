"""What an item costs whoever drives a stage: trivial items through a pool on Ray, carried as one and each alone.

    python benchmarks/mapping.py

Seconds from the call to the last result, and how much the driver's private memory grows meanwhile.
"""

import json
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import psutil
import tyro
from watch import private_bytes

from rayad import provenance
from rayad.private import keep_private

RESULTS = Path(__file__).parent / "results" / "mapping.json"


@dataclass(frozen=True)
class Options:
    """What is measured."""

    items: tuple[int, ...] = (1000, 4000)


def main(options: Options) -> None:
    """Measure, print, keep."""
    rows = []
    with get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        for items in options.items:
            for together in (1, 16):
                rows.append(processes.apply(measured, (items, together)))
                print(json.dumps(rows[-1]), flush=True)
    RESULTS.write_text(json.dumps({"rows": rows, "machine": provenance.machine()}, indent=2) + "\n")


def measured(items: int, together: int) -> dict[str, float]:
    """A row, in a process and on a Ray of its own."""
    keep_private()
    from rayad.on_ray import pool

    pool.TOGETHER = together
    driver = psutil.Process()
    with pool.connected() as ray:
        list(ray.map(abs, range(100), "warming up"))
        before, began = private_bytes(driver), time.perf_counter()
        assert list(ray.map(abs, range(items), "items")) == list(range(items))
        seconds, grown = time.perf_counter() - began, private_bytes(driver) - before
    return {
        "items": items,
        "at_most_together": together,
        "seconds": round(seconds, 1),
        "driver_MB": round(grown / 1e6, 1),
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
