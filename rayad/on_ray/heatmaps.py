"""Heatmaps of many images as Ray tasks, an image each."""

from collections.abc import Callable, Iterable, Sequence

from rayad.evaluation.heatmap import Row, Tasks, failed, here
from rayad.on_ray.cluster import cluster, tasks
from rayad.on_ray.resources import given

FEW = 8
"""Images that are scored in this process before a Ray of many would have started."""


def spread(address: str) -> Tasks:
    """Where images are scored: on the cluster that is given; many on a Ray of this command, on all cores; else here."""

    def run(function: Callable[..., Row], shared: tuple, each: Sequence[tuple]) -> Iterable[Row]:
        if not each or (len(each) <= FEW and not given(address)):
            yield from here(function, shared, each)
            return
        with cluster(address):
            yield from tasks(function, each, len(each), "heatmaps", shared, lost=failed)

    return run
