"""The patch corpus: compressed npy shards, an index in parquet and a manifest, at any URL.

``manifest.json`` describes it, ``index.parquet`` has a row a patch, ``shard-*.npy.zst`` hold n x side x side
uint16 pixels (65535 is the full scale of the image they come from). docs/formats.md has every field.
The rows of a shard are cut into lanes of equal size, a frame of zstd each, so that one of many workers reads and
decompresses its own lanes alone; all frames together are the npy file.
A shard depends on its exams, the settings and the seed alone, so it has the same bytes whoever writes
it; a shard that is complete is not written again, so an interrupted corpus goes on, and one that grows
keeps what it has.
"""

import hashlib
import io
import posixpath
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt16

from rayad import storage
from rayad.datasets.exam import Exam, Images, shortened, source_of
from rayad.errors import DatasetError, FormatError, OptionError, StorageError, reason
from rayad.fingerprint import fingerprint
from rayad.imaging import mammogram
from rayad.imaging.context import context
from rayad.imaging.picture import Preprocessing, described, from_description
from rayad.imaging.plausibility import Doubt
from rayad.options import Share
from rayad.patches.sample import Sampling, choose, cut, leaves_image

SCHEMA = 2
Stored = UInt16[np.ndarray, "n side side ..."]
"""Patches as shards hold them: n x side x side, of colours n x side x side x 3."""
FULL_SCALE = 65535
SHORT = 32
"""Digits of the hash of a lane."""
LEARNING_SPLITS = ("train", "validation")
SHARD = ".npy.zst"
"""How the name of a shard's file ends."""
ZSTD = pa.Codec("zstd", compression_level=1)
"""docs/scaling.md has what it was chosen from."""
LANES = 16
"""Frames of a shard: up to so many workers share the reading of a corpus."""
ALL_LANES = (0, LANES)
HEADER = 1024
"""Bytes that hold the header of an npy file of patches, and more."""
RECORDED = ("name", "split", "patches", "images", "npy_bytes", "npy_sha256", "sha256")
"""What the manifest has of every shard."""
READERS = 16
"""Parts of the index that are read at a time."""
PLAN = "plan.json"
"""Which exams are in which shard."""


@dataclass(frozen=True)
class Ingest:
    """What a corpus is made of; equal settings give equal bytes."""

    preprocessing: Preprocessing = mammogram.Preprocessing()
    sampling: Sampling = Sampling()
    shard_patches: int = 4096
    """Patches a shard, about; a shard holds whole images."""
    max_failures: float = 0.01
    """Share of images that may fail before the corpus is refused."""
    mixed: Share = 0.0
    """Share of the diseased patients for choices whose images are learned from too, as if they were healthy."""

    def __post_init__(self) -> None:
        side_px, patch_px = self.preprocessing.side_px, self.sampling.patch_px
        if 0 < side_px < patch_px:
            raise OptionError(
                f"side_px of the images must be at least that of their patches, {patch_px}, not {side_px}"
            )

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Rows, columns and, of colours, channels of a patch."""
        side, channels = self.sampling.patch_px, self.preprocessing.channels
        return (side, side) if channels == 1 else (side, side, channels)

    def described(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self) | {"preprocessing": described(self.preprocessing)}


@dataclass(frozen=True)
class ShardPlan:
    """The exams of one shard, all of one split."""

    name: str
    split: str
    exams: tuple[Exam, ...]
    contents: tuple[str, ...] = ()
    """Of each exam, as `contents` of rayad/datasets/content.py gives them."""


PatchesOf = Callable[[Images, Exam, Ingest], tuple[Stored, pd.DataFrame, tuple[Doubt, ...]]]
"""The patches of one image, their rows of the index, and what may be wrong with the image."""


def plan(
    exams: list[Exam],
    splits: dict[str, str],
    ingest: Ingest,
    before: Sequence[dict[str, Any]] = (),
    contents: Mapping[str, str] | None = None,
) -> list[ShardPlan]:
    """Group the exams that one learns from into shards, in the order of their ids.

    Args:
        before: shards of an earlier plan, as `remembered` returns them: those whose exams are all still there, in
            the same split, stay as they are, and new exams go to new shards.
        contents: exam_id -> what it is made of; None: nothing is known of it.

    Raises:
        DatasetError: a split that learning needs has no image.
    """
    per_shard = max(1, ingest.shard_patches // ingest.sampling.patches)
    by_id = {exam.exam_id: exam for exam in exams if splits[exam.exam_id] in LEARNING_SPLITS}
    plans = [
        ShardPlan(shard["name"], shard["split"], tuple(by_id[name] for name in shard["exams"]))
        for shard in before
        if all(name in by_id and splits[name] == shard["split"] for name in shard["exams"])
    ]
    kept_ids = {exam.exam_id for shard in plans for exam in shard.exams}
    number = max((int(shard["name"].rpartition("-")[2]) + 1 for shard in before), default=0)
    for split in LEARNING_SPLITS:
        if split not in {splits[name] for name in by_id}:
            anomalous = sum(exam.anomalous is True for exam in exams)
            population = f"{len(exams)} images, of which {anomalous} are anomalous"
            advice = "; images are healthy by a label (normal in labels.csv), or all of a folder with healthy=true"
            raise DatasetError(
                f"no image of a healthy patient in the {split} split, of {population}{advice * (not anomalous)}"
            )
        new_ids = sorted(name for name in by_id if splits[name] == split and name not in kept_ids)
        for start in range(0, len(new_ids), per_shard):
            names = new_ids[start : start + per_shard]
            plans.append(ShardPlan(f"shard-{number:05d}", split, tuple(by_id[name] for name in names)))
            number += 1
    content_of = contents or {}
    return [replace(shard, contents=tuple(content_of.get(exam.exam_id, "") for exam in shard.exams)) for shard in plans]


def remember(url: str, plans: Sequence[ShardPlan], ingest: Ingest) -> None:
    """Write which exams are in which shard, so that a corpus that grows keeps its shards."""
    shards = [
        {
            "name": shard.name,
            "split": shard.split,
            "exams": [exam.exam_id for exam in shard.exams],
            "contents": shard.contents,
        }
        for shard in plans
    ]
    storage.write_json(storage.join(url, PLAN), {"settings": fingerprint(ingest.described()), "shards": shards})


def remembered(url: str, ingest: Ingest) -> list[dict[str, Any]]:
    """The shards of the corpus that is there, if it was made with these settings."""
    plan_url = storage.join(url, PLAN)
    stored_plan = storage.read_json(plan_url) if storage.exists(plan_url) else {}
    return stored_plan["shards"] if stored_plan.get("settings") == fingerprint(ingest.described()) else []


def write_shard(
    url: str, plan: ShardPlan, dataset: Images, ingest: Ingest, patches_of: PatchesOf | None = None
) -> dict[str, Any]:
    """Write one shard and its part of the index, unless they are complete; return its record.

    The record says what the shard holds and which images failed for which reason; it is written last,
    so a shard with a record is whole.

    Args:
        patches_of: in the place of `exam_patches`.
    """
    data_url = storage.join(url, plan.name + SHARD)
    record_url, index_url = (storage.join(url, "parts", f"{plan.name}.{ending}") for ending in ("json", "parquet"))
    made_of = asdict(plan) | {"exams": [exam.described() for exam in plan.exams]}
    request = fingerprint([SCHEMA, made_of, ingest.described()])
    if all(storage.exists(file) for file in (record_url, index_url, data_url)):
        record = storage.read_json(record_url)
        if record["request"] == request and not any(map(is_tried_again, record["failures"])):
            return record
    blocks, parts, failures, doubtful = [], [], [], []
    for exam in plan.exams:
        try:
            patches, rows, doubts = (patches_of or exam_patches)(dataset, exam, ingest)
        except Exception as error:  # noqa: BLE001, whatever it is, the other images are read
            failure = {"exam_id": exam.exam_id, "url": exam.url, "reason": reason(error)}
            failures.append(failure | {"again": True} if isinstance(error, StorageError) else failure)
            continue
        doubtful += [{"exam_id": exam.exam_id, "url": exam.url, **asdict(doubt)} for doubt in doubts]
        blocks.append(patches)
        parts.append(rows)
    data, facts = packed(np.concatenate(blocks) if blocks else np.empty((0, *ingest.patch_shape), np.uint16))
    index = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    index.insert(0, "shard", plan.name)
    index.insert(1, "row_in_shard", np.arange(len(index)))
    index["split"] = plan.split
    storage.write_bytes(data_url, data)
    storage.write_bytes(index_url, _parquet(index))
    record = {
        "request": request,
        "name": plan.name,
        "split": plan.split,
        "patches": len(index),
        "images": len(blocks),
        "reflected": int(np.sum(index["reflected"].to_numpy())) if len(index) else 0,
        **facts,
        "failures": failures,
        "doubtful": doubtful,
    }
    storage.write_json(record_url, record)
    return record


def is_tried_again(failure: dict[str, Any]) -> bool:
    """Whether the same command reads the image again: that its file could not be reached says nothing of it."""
    return failure.get("again", False)


def _with_url(failure: dict[str, Any]) -> str:
    return failure["reason"] if failure["url"] in failure["reason"] else f"{failure['url']}: {failure['reason']}"


def exam_patches(dataset: Images, exam: Exam, ingest: Ingest) -> tuple[Stored, pd.DataFrame, tuple[Doubt, ...]]:
    """The patches of one image, their rows of the index, and what may be wrong with the image."""
    prepared = ingest.preprocessing.prepare(source_of(dataset, exam))
    rows, columns, regions = choose(prepared.body, prepared.tissue, ingest.sampling, exam.exam_id)
    patch_px = ingest.sampling.patch_px
    patches = np.round(cut(prepared.pixels, rows, columns, patch_px) * FULL_SCALE).astype(np.uint16)
    facts = {k: getattr(exam, k) for k in ("exam_id", "patient_id", "view", "laterality", "density")}
    index = pd.DataFrame({"region": regions, "row": rows, "col": columns, **facts})
    for name, values in context(prepared, patch_px).items():
        index[name] = values[rows, columns]
    index["reflected"] = leaves_image(prepared.tissue.shape, rows, columns, patch_px)
    return patches, index, prepared.doubts


def finish(url: str, records: list[dict[str, Any]], ingest: Ingest, provenance: dict[str, Any]) -> dict[str, Any]:
    """Merge the shards' parts into the index, then write the manifest: from now on the corpus exists.

    Raises:
        DatasetError: more images failed than ``max_failures`` allows; the first reasons are in the message.
    """
    failures = [failure for record in records for failure in record["failures"]]
    images = sum(record["images"] for record in records) + len(failures)
    if len(failures) > ingest.max_failures * images:
        first = "; ".join(_with_url(failure) for failure in failures[:3])
        all_of_them = f"all of them are in {storage.join(url, 'parts')}" if len(failures) > 3 else ""
        sentence = f"{len(failures)} of {images} images failed, more than {ingest.max_failures:.1%}: {first}"
        raise DatasetError("; ".join(filter(None, [sentence, all_of_them])))
    index_url = storage.join(url, "index.parquet")
    _join(
        [storage.join(url, "parts", f"{record['name']}.parquet") for record in records if record["patches"]], index_url
    )
    shards = [
        {k: record[k] for k in (*RECORDED, "frames") if k in record}  # shards of an earlier version are one frame
        for record in records
    ]
    manifest = {
        "schema": SCHEMA,
        "parameters": ingest.described(),
        "patches": sum(record["patches"] for record in records),
        "images": images - len(failures),
        "reflected_patches": sum(record["reflected"] for record in records),
        "shards": shards,
        "index_sha256": hashlib.sha256(storage.mapped(index_url)).hexdigest(),
        "content": fingerprint([shard["npy_sha256"] for shard in shards]),
        "failures": failures,
        "doubtful": [doubt for record in records for doubt in record.get("doubtful", [])],
        **provenance,
    }
    _remove_others(url, {record["name"] for record in records})
    storage.write_json(storage.join(url, "manifest.json"), manifest)
    return manifest


def _remove_others(url: str, names: set[str]) -> None:
    """Shards of an earlier plan that are in this one no more, and their parts."""
    kept_files = {name + ending for name in names for ending in (SHARD, ".json", ".parquet")}
    for file in storage.listing(url):
        name = posixpath.basename(file)
        if name.startswith("shard-") and name not in kept_files:
            storage.remove(file)


@dataclass(frozen=True)
class Corpus:
    """A corpus that is complete; ``Corpus.open(url)``."""

    url: str
    manifest: dict[str, Any]
    checked: set[tuple[str, int]] = field(default_factory=set, compare=False, repr=False)
    """Shards and lanes whose hash was found to be the manifest's; -1: of the whole file."""

    @staticmethod
    def open(url: str) -> "Corpus":
        """Read the manifest.

        Raises:
            FormatError: there is no corpus, or it is of another schema.
        """
        manifest_url = storage.join(url, "manifest.json")
        if not storage.exists(manifest_url):
            raise FormatError(f"{url}: no patch corpus here, manifest.json is missing")
        manifest = storage.read_json(manifest_url)
        if (schema := manifest.get("schema", 0)) != SCHEMA:
            advice = "a newer rayad reads it" if schema > SCHEMA else "ingest it again"
            raise FormatError(f"{manifest_url}: a corpus of schema {SCHEMA} is wanted, not of {schema}; {advice}")
        return Corpus(url, manifest)

    def shards(self, split: str) -> list[tuple[str, int]]:
        """Name and number of patches of the split's shards."""
        return [
            (shard["name"], shard["patches"])
            for shard in self.manifest["shards"]
            if shard["split"] == split and shard["patches"]
        ]

    def share(self, split: str, rank: int = 0, world: int = 1) -> list[tuple[str, slice]]:
        """The rows of a split that one of several workers holds, as for latents: a run of neighbouring rows; the shares
        differ by one row at most. For batches of patches workers divide the lanes instead (`order.lanes_of`).

        Returns:
            Names of shards and rows in each; those of all workers, one after the other, are the split's. A worker for
            whom nothing is left has no rows of the first shard.
        """
        shards = self.shards(split)
        ends = np.cumsum([0, *(number for _, number in shards)])
        first, last = (int(ends[-1]) * bound // world for bound in (rank, rank + 1))
        rows = np.clip(np.stack([first - ends[:-1], last - ends[:-1]]), 0, np.diff(ends)).T.tolist()
        shares = [
            (name, slice(*bounds)) for (name, _), bounds in zip(shards, rows, strict=True) if bounds[0] < bounds[1]
        ]
        return shares or [(name, slice(0, 0)) for name, _ in shards[:1]]

    def read(self, shard: str, lanes: tuple[int, int] = ALL_LANES) -> Stored:
        """The patches of a shard, not to be written to; checked against the manifest's hashes when read first.

        Args:
            lanes: the first that is wanted, and the one after the last.
        """
        record = next(shard_record for shard_record in self.manifest["shards"] if shard_record["name"] == shard)
        if lanes == ALL_LANES or "frames" not in record:
            first, last = (int(bound) for bound in bounds_of(record["patches"])[list(lanes)])
            return self._whole(shard, record)[first:last]
        return self._lanes(shard, record, *lanes)

    def _lanes(self, shard: str, record: dict[str, Any], first: int, last: int) -> Stored:
        """Some lanes of a shard: a part of its file."""
        shard_url, sizes = storage.join(self.url, shard + SHARD), [size for size, _ in record["frames"]]
        ends = np.cumsum([0, *sizes]).tolist()
        data, rows = storage.part(shard_url, ends[first], ends[last]), bounds_of(record["patches"])
        for lane in range(first, last):
            frame = data[ends[lane] - ends[first] : ends[lane + 1] - ends[first]]
            if (shard, lane) not in self.checked:
                if hashlib.sha256(frame).hexdigest()[:SHORT] != record["frames"][lane][1]:
                    raise FormatError(
                        f"{shard_url}: altered or truncated, the hash of lane {lane} is not the manifest's"
                    )
                self.checked.add((shard, lane))
        patch = self.patch_shape
        size = int(np.prod(patch)) * np.dtype(np.uint16).itemsize
        header = record["npy_bytes"] - record["patches"] * size if first == 0 else 0
        number = int(rows[last] - rows[first])
        try:
            pixels = ZSTD.decompress(data, header + number * size)
            return np.frombuffer(pixels, np.uint16, offset=header).reshape(number, *patch)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise FormatError(f"{shard_url}: lanes {first} to {last - 1} hold no {number} patches: {error}") from None

    @property
    def patch_px(self) -> int:
        """Side of its patches; before there were several, all were of 64 px."""
        return self.manifest["parameters"]["sampling"].get("patch_px", 64)

    @property
    def channels(self) -> int:
        """Channels of its patches."""
        return from_description(self.manifest["parameters"]["preprocessing"]).channels

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Rows, columns and, of colours, channels of a patch."""
        side = self.patch_px
        return (side, side) if self.channels == 1 else (side, side, self.channels)

    def _whole(self, shard: str, record: dict[str, Any]) -> Stored:
        shard_url = storage.join(self.url, shard + SHARD)
        data = storage.mapped(shard_url)
        if (shard, -1) not in self.checked:
            if hashlib.sha256(data).hexdigest() != record["sha256"]:
                raise FormatError(f"{shard_url}: altered or truncated, its hash is not the manifest's")
            self.checked.add((shard, -1))
        try:
            return _array(ZSTD.decompress(data, record["npy_bytes"]))
        except (pa.ArrowException, OSError, ValueError) as error:
            size = record["npy_bytes"]
            raise FormatError(f"{shard_url}: holds no npy of {size} bytes, as the manifest says: {error}") from None

    def require_disjoint(self) -> None:
        """DatasetError if a patient stands in two splits: then nothing that is learned can be judged."""
        splits: dict[str, set[str]] = {}
        index = self.index("patient_id", "split")
        for patient, split in zip(index["patient_id"], index["split"], strict=True):
            splits.setdefault(patient, set()).add(split)
        if shared_patients := [patient for patient, patient_splits in splits.items() if len(patient_splits) > 1]:
            raise DatasetError(
                f"{self.url}: {len(shared_patients)} patients stand in two splits: {shortened(shared_patients)}"
            )

    def problems(self) -> list[str]:
        """What forbids to learn from it: patients in two splits, shards that are missing or altered."""
        sentences = []
        for check in [self.require_disjoint, *(partial(self.read, shard["name"]) for shard in self.manifest["shards"])]:
            try:
                check()
            except (DatasetError, FormatError, StorageError) as error:
                sentences.append(str(error))
        return sentences

    def index(self, *columns: str, shards: Sequence[str] = ()) -> pd.DataFrame:
        """A row a patch: shard, row_in_shard, exam and place.

        Args:
            columns: those that are wanted; none means all.
            shards: only their rows; none means those of all.
        """
        data = pa.BufferReader(storage.mapped(storage.join(self.url, "index.parquet")))
        filters = [("shard", "in", list(shards))] if shards else None
        return pq.read_table(data, columns=list(columns) or None, filters=filters).to_pandas()


def bounds_of(patches: int) -> Int64[np.ndarray, " l"]:
    """The row that each lane of so many patches begins with, and the one after the last."""
    return np.arange(LANES + 1) * patches // LANES


def packed(patches: Stored) -> tuple[bytes, dict[str, Any]]:
    """The file of a shard with its hashes, and size and hash of the npy in it, which no version of zstd changes."""
    buffer = io.BytesIO()
    np.save(buffer, patches, allow_pickle=False)
    npy = buffer.getvalue()
    places = len(npy) - patches.nbytes + bounds_of(len(patches)) * (patches.nbytes // max(len(patches), 1))
    places[0] = 0  # the first frame begins with the header
    frames = [ZSTD.compress(npy[start:end], asbytes=True) for start, end in pairwise(places.tolist())]
    data = b"".join(frames)
    hashes = {"sha256": hashlib.sha256(data).hexdigest(), "npy_sha256": hashlib.sha256(npy).hexdigest()}
    lanes = [[len(frame), hashlib.sha256(frame).hexdigest()[:SHORT]] for frame in frames]
    return data, {"npy_bytes": len(npy), "frames": lanes} | hashes


def _array(data: pa.Buffer) -> np.ndarray:
    """The array of an npy file, which stays where the bytes are: np.load would copy it."""
    file = io.BytesIO(data.slice(0, min(HEADER, data.size)))
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)


def _join(parts: Sequence[str], url: str) -> None:
    """Write tables of equal columns as one, of which no more than `READERS` are in memory."""
    schema = pq.read_schema(pa.BufferReader(storage.read_bytes(parts[0]))).remove_metadata()
    with (
        storage.writing(url) as file,
        pq.ParquetWriter(file, schema) as writer,
        ThreadPoolExecutor(READERS) as readers,
    ):
        for first in range(0, len(parts), READERS):
            for data in readers.map(storage.read_bytes, parts[first : first + READERS]):
                writer.write_table(pq.read_table(pa.BufferReader(data)).cast(schema))


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
