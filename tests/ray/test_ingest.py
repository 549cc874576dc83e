"""Corpora on Ray: the bytes that one process writes, and an image that ends its process is a row."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from ray import cloudpickle
from ray.data import DataIterator

from rayad import storage
from rayad.datasets import phantom
from rayad.datasets.exam import Exam
from rayad.errors import ImageError
from rayad.on_ray import pool
from rayad.on_ray.cluster import READERS, READING_S
from rayad.on_ray.data import read_corpus
from rayad.on_ray.pool import OnRay, processes
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.ingest import ingest
from rayad.pool import Here

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
SETTINGS = Ingest(sampling=Sampling(patches=12), shard_patches=48)


@dataclass(frozen=True)
class Healthy(phantom.Dataset):
    """A small phantom."""

    deadly: str = ""
    """Reading this image ends the process."""
    odd: str = ""
    """Reading this one fails as nobody expected."""

    def pixels(self, exam: Exam):
        if exam.exam_id == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if exam.exam_id == self.odd:
            raise ZeroDivisionError("nobody expected this")
        return super().pixels(exam)


class Met:
    """Says which process worked on an item, once so many processes are there."""

    def __init__(self, folder: str, expected: int) -> None:
        self.folder, self.expected = folder, expected

    def __call__(self, item: int) -> tuple[int, int]:
        Path(self.folder, str(os.getpid())).touch()
        until = time.monotonic() + 120
        while len(os.listdir(self.folder)) < self.expected and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)
        return item, os.getpid()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    url = str(tmp_path_factory.mktemp("corpus"))
    ingest(OnRay(), Healthy(patients=12), url, SETTINGS, {"dataset": "phantom"})
    return Corpus.open(url)


def test_a_corpus_has_the_bytes_that_one_process_writes(corpus, tmp_path):
    ingest(Here(), Healthy(patients=12), str(tmp_path), SETTINGS, {"dataset": "phantom"})
    names = {file.removeprefix(corpus.url) for file in storage.listing(corpus.url)}
    assert {file.removeprefix(str(tmp_path)) for file in storage.listing(str(tmp_path))} == names
    for name in names:
        assert storage.read_bytes(f"{corpus.url}{name}") == storage.read_bytes(f"{tmp_path}{name}"), name


def test_an_image_that_ends_its_process_or_fails_as_nobody_expected_is_a_row_and_the_others_are_there(corpus, tmp_path):
    lenient = replace(SETTINGS, max_failures=0.5)
    whole = corpus.index()
    deadly, odd = sorted(set(whole["exam_id"]))[:2]
    manifest = ingest(OnRay(), Healthy(patients=12, deadly=deadly, odd=odd), str(tmp_path / "some"), lenient, {})
    reasons = {failure["exam_id"]: failure["reason"] for failure in manifest["failures"]}
    assert reasons.keys() == {deadly, odd}
    assert "the process that worked on it ended, 4 times" in reasons[deadly]
    assert reasons[odd] == "it failed: ZeroDivisionError: nobody expected this"
    there = Corpus.open(str(tmp_path / "some")).index()
    assert sorted(there["exam_id"]) == sorted(whole["exam_id"][~whole["exam_id"].isin([deadly, odd])])


def test_an_object_works_in_several_processes_which_the_next_stage_finds_again(tmp_path):
    items, number = list(range(8)), min(2, processes())
    rows, next_rows = (list(OnRay().map(Met, items, "items", (str(tmp_path), number))) for _ in range(2))
    assert [item for item, _ in rows] == items
    assert len({process for _, process in rows}) == number > 1
    assert {process for _, process in next_rows} == {process for _, process in rows}


def test_an_item_that_ends_its_process_takes_none_along_of_those_that_are_carried_as_one(monkeypatch):
    monkeypatch.setattr(pool, "PIECES", 1)
    monkeypatch.setattr(pool, "RETRIES", 1)
    items = list(range(8 * processes()))
    deadly = len(items) - 3

    def work(item: int) -> int:
        if item == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return -item

    rows = list(OnRay().map(work, items, "numbers", lost=lambda why, item: (why, item)))
    assert rows[deadly] == ("the process that worked on it ended, 2 times", deadly)
    assert rows[:deadly] + rows[deadly + 1 :] == [-item for item in items if item != deadly]


def test_an_error_ends_what_reads_ahead_while_it_is_still_looked_at():
    """A frame that the error's traceback holds would keep it going until Ray is over, and then end the process."""

    def work(item: int) -> int:
        if item == 1:
            raise ImageError("the second")
        time.sleep(0.5)
        return item

    with pytest.raises(ImageError, match="the second") as caught:
        list(OnRay().map(work, range(60), "numbers"))
    assert caught.traceback
    reading = [thread for thread in threading.enumerate() if thread.name.startswith(READERS)]
    for thread in reading:
        thread.join(READING_S)
    assert [thread.name for thread in reading if thread.is_alive()] == []


def test_anybody_reads_the_patches_of_a_corpus_with_their_index(corpus):
    rows = {(row["shard"], row["row_in_shard"]): row for row in read_corpus(corpus.url).iter_rows()}
    assert len(rows) == corpus.manifest["patches"]
    for name, number in corpus.shards("train"):
        patches = corpus.read(name)
        for at in range(number):
            assert np.array_equal(rows[name, at]["patch"], patches[at])
            assert rows[name, at]["split"] == "train"


def test_a_model_outside_of_rayad_learns_from_shares_of_the_training_patches(corpus):
    number = sum(count for _, count in corpus.shards("train"))
    shares = read_corpus(corpus.url, "train").select_columns(["patch", "skin_mm"]).streaming_split(2, equal=False)

    def learned(share: DataIterator) -> list[tuple[int, ...]]:
        return [tuple(batch["patch"].shape) for batch in share.iter_torch_batches(batch_size=16)]

    with ThreadPoolExecutor(2) as workers:  # a share waits for the others to begin
        shapes = [shape for of_share in workers.map(learned, shares) for shape in of_share]
    assert sum(shape[0] for shape in shapes) == number
    assert {shape[1:] for shape in shapes} == {(64, 64)}
