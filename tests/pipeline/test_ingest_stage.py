"""Corpora: the same bytes whenever they are made, restartable, with every failure counted."""

import hashlib
import io
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest

from rayad import storage
from rayad.datasets import phantom
from rayad.datasets.exam import Exam
from rayad.errors import DatasetError, FormatError, ImageError, StorageError
from rayad.patches.corpus import LANES, ZSTD, Corpus, Ingest, bounds_of
from rayad.patches.sample import Sampling
from rayad.pipeline.ingest import ingest
from rayad.pool import Here

SETTINGS = Ingest(sampling=Sampling(patches=12), shard_patches=48)


@dataclass(frozen=True)
class Healthy(phantom.Dataset):
    """A small phantom; the image named ``broken`` cannot be read."""

    height: int = 256
    width: int = 192
    broken: str = ""
    odd: str = ""
    """Reading this one fails as nobody expected."""

    def pixels(self, exam: Exam):
        if exam.exam_id == self.broken:
            raise ImageError(f"{exam.exam_id}: truncated")
        if exam.exam_id == self.odd:
            raise ZeroDivisionError("nobody expected this")
        return super().pixels(exam)


def hashes(manifest: dict) -> list[str]:
    return [shard["sha256"] for shard in manifest["shards"]]


def test_a_corpus_has_the_same_bytes_again(tmp_path):
    dataset = Healthy(patients=12)
    whole = ingest(Here(), dataset, str(tmp_path / "a"), SETTINGS, {"dataset": "phantom"})
    first = ingest(Here(), dataset, str(tmp_path / "b"), SETTINGS, {"dataset": "phantom"})
    assert hashes(first) == hashes(whole)
    assert storage.read_bytes(str(tmp_path / "a/index.parquet")) == storage.read_bytes(
        str(tmp_path / "b/index.parquet")
    )


def test_a_corpus_that_is_done_is_not_written_again(tmp_path):
    dataset, url = Healthy(patients=12), str(tmp_path / "a")
    ingest(Here(), dataset, url, SETTINGS, {})
    before = (tmp_path / "a/shard-00000.npy.zst").stat().st_mtime_ns
    ingest(Here(), dataset, url, SETTINGS, {})
    assert (tmp_path / "a/shard-00000.npy.zst").stat().st_mtime_ns == before


@dataclass(frozen=True)
class Grown(phantom.Dataset):
    """The same phantoms without those of some patients, which are not there yet or no more."""

    height: int = 256
    width: int = 192
    without: tuple[str, ...] = ()
    CHOOSES = ("patients", "without")

    def exams(self) -> list[Exam]:
        return [exam for exam in super().exams() if exam.patient_id not in self.without]


def test_new_exams_go_to_new_shards_and_old_shards_stay(tmp_path):
    url, whole = str(tmp_path / "a"), Grown(patients=30)
    late = tuple(sorted({exam.patient_id for exam in whole.exams()})[::3])
    first = ingest(Here(), Grown(patients=30, without=late), url, SETTINGS, {})
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.npy.zst")}
    second = ingest(Here(), whole, url, SETTINGS, {})
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.npy.zst")}
    assert {name: after[name] for name in before} == before
    assert hashes(first) == hashes(second)[: len(hashes(first))]
    assert len(after) > len(before)
    index = Corpus.open(url).index()
    at_once = ingest(Here(), whole, str(tmp_path / "b"), SETTINGS, {})
    assert len(index) == at_once["patches"]
    assert set(index.exam_id) == set(Corpus.open(str(tmp_path / "b")).index().exam_id)
    assert ingest(Here(), whole, url, SETTINGS, {}) == second
    third = ingest(
        Here(), Grown(patients=30, without=late[:1]), url, SETTINGS, {}
    )  # a patient goes: only its shards do
    left = {path.name for path in (tmp_path / "a").glob("*.npy.zst")}
    assert left == {f"{shard['name']}.npy.zst" for shard in third["shards"]}
    assert not set(Corpus.open(url).index().patient_id) & set(late[:1])
    assert Corpus.open(url).problems() == []


def test_the_index_names_every_patch_and_its_place(tmp_path):
    ingest(Here(), Healthy(patients=12), str(tmp_path / "a"), SETTINGS, {})
    corpus = Corpus.open(str(tmp_path / "a"))
    index = corpus.index()
    assert len(index) == corpus.manifest["patches"]
    assert set(index["split"]) == {"train", "validation"}
    assert not set(index[index.split == "train"].patient_id) & set(index[index.split == "validation"].patient_id)
    one = index[index.shard == "shard-00000"]
    assert len(corpus.read("shard-00000")) == len(one)
    assert np.isfinite(index[["skin_mm", "rel_row", "rel_col", "ring_density"]].to_numpy()).all()


def test_failures_are_counted_and_too_many_end_the_ingest(tmp_path):
    broken = Healthy(patients=12).exams()
    learned = next(e for e in broken if e.exam_id in _learned(tmp_path))
    dataset = Healthy(patients=12, broken=learned.exam_id)
    with pytest.raises(DatasetError, match="truncated"):
        ingest(Here(), dataset, str(tmp_path / "strict"), SETTINGS, {})
    lenient = replace(SETTINGS, max_failures=0.5)
    manifest = ingest(Here(), dataset, str(tmp_path / "lenient"), lenient, {})
    assert [f["exam_id"] for f in manifest["failures"]] == [learned.exam_id]
    odd = ingest(Here(), Healthy(patients=12, odd=learned.exam_id), str(tmp_path / "odd"), lenient, {})
    assert [f["reason"] for f in odd["failures"]] == ["it failed: ZeroDivisionError: nobody expected this"]


def _learned(tmp_path) -> set[str]:
    ingest(Here(), Healthy(patients=12), str(tmp_path / "all"), SETTINGS, {})
    return set(Corpus.open(str(tmp_path / "all")).index().exam_id)


def test_an_altered_shard_and_another_schema_are_refused(tmp_path):
    url = str(tmp_path / "a")
    ingest(Here(), Healthy(patients=12), url, SETTINGS, {})
    whole = storage.read_bytes(f"{url}/shard-00000.npy.zst")
    for altered in (whole[:-1], whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:]):
        storage.write_bytes(f"{url}/shard-00000.npy.zst", altered)
        with pytest.raises(FormatError, match=r"shard-00000\.npy\.zst: altered or truncated"):
            Corpus.open(url).read("shard-00000")
    storage.write_bytes(f"{url}/shard-00000.npy.zst", whole)
    manifest = storage.read_json(f"{url}/manifest.json")
    manifest["shards"][0]["npy_bytes"] = 7
    storage.write_json(f"{url}/manifest.json", manifest)
    with pytest.raises(FormatError, match=r"shard-00000\.npy\.zst: holds no npy of 7 bytes"):
        Corpus.open(url).read("shard-00000")
    for schema, advice in ((99, "a newer rayad reads it"), (1, "ingest it again")):
        storage.write_json(f"{url}/manifest.json", {**storage.read_json(f"{url}/manifest.json"), "schema": schema})
        with pytest.raises(FormatError, match=advice):
            Corpus.open(url)


def test_a_shard_reads_with_the_tools_that_everybody_has(tmp_path):
    """A plain stream of zstd and numpy give what rayad reads; its hash stands in the manifest."""
    ingest(Here(), Healthy(patients=12), str(tmp_path / "a"), SETTINGS, {})
    corpus = Corpus.open(str(tmp_path / "a"))
    with pa.input_stream(str(tmp_path / "a/shard-00000.npy.zst"), compression="zstd") as file:
        npy = file.read()
    record = corpus.manifest["shards"][0]
    assert (len(npy), hashlib.sha256(npy).hexdigest()) == (record["npy_bytes"], record["npy_sha256"])
    np.testing.assert_array_equal(np.load(io.BytesIO(npy)), corpus.read("shard-00000"))


def test_lanes_of_a_shard_are_its_rows_and_are_read_alone(tmp_path):
    ingest(Here(), Healthy(patients=12), str(tmp_path / "a"), SETTINGS, {})
    corpus = Corpus.open(str(tmp_path / "a"))
    name, count = corpus.shards("train")[0]
    whole, bounds = corpus.read(name), bounds_of(count)
    assert (bounds[0], bounds[-1]) == (0, count)
    assert max(np.diff(bounds)) - min(np.diff(bounds)) <= 1
    for first, last in ((0, 1), (0, 8), (3, 4), (8, LANES), (5, 5), (0, LANES)):
        np.testing.assert_array_equal(corpus.read(name, (first, last)), whole[bounds[first] : bounds[last]])
    file = tmp_path / f"a/{name}.npy.zst"
    sizes = [size for size, _ in corpus.manifest["shards"][0]["frames"]]
    assert sum(sizes) == file.stat().st_size
    data = bytearray(file.read_bytes())
    data[sum(sizes[:9]) + 5] ^= 1
    file.write_bytes(bytes(data))
    damaged = Corpus.open(str(tmp_path / "a"))
    np.testing.assert_array_equal(damaged.read(name, (0, 9)), whole[: bounds[9]])
    with pytest.raises(FormatError, match="the hash of lane 9 is not the manifest's"):
        damaged.read(name, (8, LANES))


def test_shards_of_one_frame_are_read_as_they_were(tmp_path):
    """As earlier versions wrote them."""
    ingest(Here(), Healthy(patients=12), str(tmp_path / "a"), SETTINGS, {})
    corpus = Corpus.open(str(tmp_path / "a"))
    name, count = corpus.shards("train")[0]
    whole, bounds = corpus.read(name), bounds_of(count)
    buffer = io.BytesIO()
    np.save(buffer, whole)
    data = ZSTD.compress(buffer.getvalue(), asbytes=True)
    storage.write_bytes(f"{tmp_path}/a/{name}.npy.zst", data)
    old = corpus.manifest["shards"][0] | {"sha256": hashlib.sha256(data).hexdigest()}
    del old["frames"]
    shards = [old, *corpus.manifest["shards"][1:]]
    storage.write_json(f"{tmp_path}/a/manifest.json", corpus.manifest | {"shards": shards})
    again = Corpus.open(str(tmp_path / "a"))
    np.testing.assert_array_equal(again.read(name), whole)
    np.testing.assert_array_equal(again.read(name, (3, 9)), whole[bounds[3] : bounds[9]])


@dataclass(frozen=True)
class Away(Healthy):
    """A phantom whose image named ``away`` lies on a store that cannot be reached."""

    away: str = ""
    CHOOSES = ("patients", "away")

    def pixels(self, exam: Exam):
        if exam.exam_id == self.away:
            raise StorageError(f"cannot read {exam.url}: cannot be reached")
        return super().pixels(exam)


def test_an_image_that_could_not_be_reached_is_tried_again_by_the_same_command(tmp_path):
    url, lenient = str(tmp_path / "a"), replace(SETTINGS, max_failures=0.5)
    whole = ingest(Here(), Healthy(patients=12), str(tmp_path / "whole"), SETTINGS, {})
    learned = Corpus.open(str(tmp_path / "whole")).index("exam_id").exam_id.iloc[0]
    partial = ingest(Here(), Away(patients=12, away=learned), url, lenient, {})
    assert [(failure["exam_id"], failure["again"]) for failure in partial["failures"]] == [(learned, True)]
    kept = (tmp_path / "a/shard-00001.npy.zst").stat().st_mtime_ns
    again = ingest(Here(), Away(patients=12), url, lenient, {})
    assert again["failures"] == []
    assert again["content"] == whole["content"]
    assert (tmp_path / "a/shard-00001.npy.zst").stat().st_mtime_ns == kept
