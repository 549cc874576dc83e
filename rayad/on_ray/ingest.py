"""Images to a patch corpus, a shard a task, on Ray Data."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rayad import storage
from rayad.datasets.content import contents
from rayad.datasets.exam import Exam, Images, listed
from rayad.datasets.splits import assign
from rayad.errors import ImageError
from rayad.fingerprint import fingerprint
from rayad.on_ray import metrics
from rayad.on_ray.cluster import each, tasks
from rayad.patches.corpus import Ingest, ShardPlan, exam_patches, finish, plan, remember, remembered, write_shard
from rayad.terminal import say


def ingest(dataset: Images, url: str, settings: Ingest, provenance: dict[str, Any]) -> dict[str, Any]:
    """Write the corpus of a data set's healthy patients and return its manifest.

    Shards that are already complete are kept, so an interrupted call goes on where it stopped, and new exams of a
    data set that has grown go to new shards; a corpus that is complete and was made of the same exams with the same
    settings is not touched.

    Args:
        provenance: what the manifest should say of the data set (its name and source).

    Raises:
        DatasetError: no healthy patients, or more failures than the settings allow.
        StorageError: the corpus cannot be written.
    """
    exams, left_out = listed(dataset)
    before = remembered(url, settings)
    plans = tuple(plan(exams, assign(exams), settings, before, contents(dataset, exams)))
    if changed := _changed(before, plans):
        say(
            f"{changed} images or their labels changed since {url} was made: their shards are made anew",
            sys.stderr,
        )
    request = fingerprint([plans, settings])
    where = storage.join(url, "manifest.json")
    if storage.exists(where):
        manifest = storage.read_json(where)
        if manifest.get("request") == request:
            return manifest
        storage.remove(where)
    remember(url, plans, settings)
    lost = each(lambda i: _tell(write_shard(url, plans[i], dataset, settings)), len(plans), f"patches to {url}")
    for i in lost:  # which of its images it is, is seen when each has a process of its own
        _tell(write_shard(url, plans[i], dataset, settings, _patches_alone))
    records = [write_shard(url, p, dataset, settings) for p in plans]  # complete: reads the records back
    facts = {"request": request, "excluded": [asdict(exclusion) for exclusion in left_out]}
    return finish(url, records, settings, facts | provenance)


def _changed(before: Sequence[dict[str, Any]], plans: Sequence[ShardPlan]) -> int:
    """How many exams are made of something else than when a corpus was planned."""
    was = {
        name: content
        for shard in before
        for name, content in zip(shard["exams"], shard.get("contents", ()), strict=False)
    }
    now = {exam.exam_id: content for shard in plans for exam, content in zip(shard.exams, shard.contents, strict=True)}
    return sum(was[name] != content for name, content in now.items() if name in was)


def _patches_alone(dataset: Images, exam: Exam, settings: Ingest) -> Any:
    """The patches of one image, made in a task of its own; ImageError where that ends its process."""
    (patches,) = tasks(exam_patches, [(dataset, exam, settings)], 1, exam.exam_id, lost=_unread)
    if isinstance(patches, ImageError):
        raise patches
    return patches


def _unread(why: str, dataset: Images, exam: Exam, settings: Ingest) -> ImageError:
    return ImageError(f"{exam.url}: {why}")


def _tell(record: dict[str, Any]) -> None:
    """Count what a shard holds."""
    metrics.count("ingest_images", record["images"], result="done")
    metrics.count("ingest_images", len(record["failures"]), result="failed")
    metrics.count("ingest_patches", record["patches"])
