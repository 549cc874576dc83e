"""Images to a patch corpus, a shard an item of the pool."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from rayad import provenance, storage
from rayad.datasets.content import contents
from rayad.datasets.exam import Exam, Images, listed
from rayad.datasets.exams import write as write_list
from rayad.datasets.splits import assign, division_of, mixed_in
from rayad.errors import ImageError
from rayad.fingerprint import fingerprint
from rayad.patches.corpus import (
    Corpus,
    Ingest,
    ShardPlan,
    exam_patches,
    finish,
    is_tried_again,
    plan,
    remember,
    remembered,
    write_shard,
)
from rayad.pool import Pool
from rayad.terminal import say


def ingest(pool: Pool, dataset: Images, url: str, settings: Ingest, description: dict[str, Any]) -> dict[str, Any]:
    """Write the corpus of a data set's healthy patients, and of those that are mixed in; return its manifest.

    Shards that are already complete are kept, so an interrupted call goes on where it stopped, and new exams of a
    data set that has grown go to new shards; a corpus that is complete and was made of the same exams with the same
    settings is not touched. Images whose files could not be reached are tried again.

    Args:
        description: what the manifest should say of the data set (its name and source).

    Raises:
        DatasetError: no healthy patients, or more failures than the settings allow.
        StorageError: the corpus cannot be written.
    """
    exams, left_out = listed(dataset)
    before, splits = remembered(url, settings), mixed_in(exams, assign(exams), settings.mixed)
    plans = tuple(plan(exams, splits, settings, before, contents(dataset, exams)))
    if changed := _changed(before, plans):
        say(
            f"{changed} images or their labels changed since {url} was made: their shards are made anew",
            sys.stderr,
        )
    request = fingerprint([plans, settings])
    manifest_url = storage.join(url, "manifest.json")
    if storage.exists(manifest_url):
        manifest = storage.read_json(manifest_url)
        if manifest.get("request") == request and not any(map(is_tried_again, manifest["failures"])):
            return manifest
        storage.remove(manifest_url)
    write_list(dataset, exams, splits, left_out, url)
    remember(url, plans, settings)
    records = []
    for shard, pooled_record in zip(
        plans, pool.map(_record, plans, f"patches to {url}", (url, dataset, settings), _nothing), strict=True
    ):
        # The shard ended its process: done again with a process an image, it shows which image it was.
        record = pooled_record or write_shard(url, shard, dataset, settings, partial(_patches_alone, pool))
        pool.count("ingest_images", record["images"], result="done")
        pool.count("ingest_images", len(record["failures"]), result="failed")
        pool.count("ingest_patches", record["patches"])
        records.append(record)
    facts = {"request": request, "excluded": [asdict(exclusion) for exclusion in left_out]}
    return finish(url, records, settings, facts | description)


def write_corpus(pool: Pool, name: str, source: str, dataset: Images, settings: Ingest, url: str) -> Corpus:
    """Images to patches."""
    description = {"dataset": name, "source": source, "shares": asdict(division_of(dataset))}
    ingest(pool, dataset, url, settings, description | {"versions": provenance.versions()})
    return Corpus.open(url)


def _changed(before: Sequence[dict[str, Any]], plans: Sequence[ShardPlan]) -> int:
    """How many exams are made of something else than when a corpus was planned."""
    old_contents = {
        name: content
        for shard in before
        for name, content in zip(shard["exams"], shard.get("contents", ()), strict=False)
    }
    new_contents = {
        exam.exam_id: content for shard in plans for exam, content in zip(shard.exams, shard.contents, strict=True)
    }
    return sum(old_contents[name] != content for name, content in new_contents.items() if name in old_contents)


def _record(url: str, dataset: Images, settings: Ingest, shard: ShardPlan) -> dict[str, Any]:
    return write_shard(url, shard, dataset, settings)


def _nothing(why: str, shard: ShardPlan) -> None:
    """The record of a shard whose process ended."""


def _patches_alone(pool: Pool, dataset: Images, exam: Exam, settings: Ingest) -> Any:
    """The patches of one image, made in a process of its own; ImageError where that ends it."""
    (patches,) = pool.map(_patches, [exam], exam.exam_id, (dataset, settings), _unread)
    if isinstance(patches, ImageError):
        raise patches
    return patches


def _patches(dataset: Images, settings: Ingest, exam: Exam) -> Any:
    return exam_patches(dataset, exam, settings)


def _unread(why: str, exam: Exam) -> ImageError:
    return ImageError(f"{exam.url}: {why}")
