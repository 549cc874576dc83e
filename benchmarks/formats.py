"""Which format for the shards of a corpus? Size and speed of several, from disk and from S3.

    python benchmarks/formats.py --corpus corpus --out formats --s3 s3://bucket/formats

Shards of a real corpus (uint16 patches) are written in each format and read again, one after the other in one thread,
page cache warm; S3 is on loopback, so a real network makes small files win sooner. Medians of several rounds, in MB of
pixels a second.

npy
npy+lz4, npy+zstd             compressed whole; the latter is what a corpus holds
planes+lz4, planes+zstd       high bytes first, then low bytes, compressed
parquet, parquet+zstd         a column of fixed_size_binary, 8192 bytes a patch
"""

import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from rayad import provenance, storage
from rayad.patches.corpus import Corpus

RESULTS = Path(__file__).parent / "results" / "formats.json"
Array = np.ndarray


@dataclass(frozen=True)
class Options:
    """What is written, and where."""

    corpus: str
    out: str
    """Local folder."""
    s3: str = ""
    """The same on object storage; empty: not measured."""
    shards: int = 8
    """Shards of the corpus, at most."""
    rounds: int = 5


@dataclass(frozen=True)
class Format:
    """How an array becomes bytes, and bytes an array again."""

    write: Callable[[Array], bytes]
    read: Callable[[Any], Array]


def _npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _view(data: Any) -> Array:
    file = io.BytesIO(data[:1024])
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)


def _whole(codec: str) -> Format:
    """npy, compressed whole; its length in 8 bytes before it."""

    def write(array: Array) -> bytes:
        data = _npy(array)
        return len(data).to_bytes(8, "big") + pa.compress(data, codec=codec, asbytes=True)

    def read(data: Any) -> Array:
        size = int.from_bytes(data[:8], "big")
        return _view(pa.decompress(memoryview(data)[8:], size, codec=codec))

    return Format(write, read)


def _planes(codec: str) -> Format:
    """Each byte of the numbers for itself."""

    def write(array: Array) -> bytes:
        planes = np.ascontiguousarray(array.view(np.uint8).reshape(-1, 2).T)
        return len(array).to_bytes(8, "big") + pa.compress(planes.tobytes(), codec=codec, asbytes=True)

    def read(data: Any) -> Array:
        number = int.from_bytes(data[:8], "big")
        planes = np.frombuffer(pa.decompress(memoryview(data)[8:], number * 8192, codec=codec), np.uint8).reshape(2, -1)
        found = np.empty((planes.shape[1], 2), np.uint8)
        found[:, 0], found[:, 1] = planes
        return found.view(np.uint16).reshape(-1, 64, 64)

    return Format(write, read)


def _parquet(codec: str) -> Format:
    def write(array: Array) -> bytes:
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(8192), len(array), [None, pa.py_buffer(array)])
        buffer = io.BytesIO()
        table = pa.table({"patch": column})
        pq.write_table(table, buffer, compression=codec, use_dictionary=False, row_group_size=4096)
        return buffer.getvalue()

    def read(data: Any) -> Array:
        column = pq.read_table(pa.BufferReader(data), use_threads=False)["patch"].combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        return np.frombuffer(column.buffers()[1], np.uint16).reshape(-1, 64, 64)

    return Format(write, read)


FORMATS: Mapping[str, Format] = {
    "npy": Format(_npy, _view),
    "npy+lz4": _whole("lz4"),
    "npy+zstd": _whole("zstd"),
    "planes+lz4": _planes("lz4"),
    "planes+zstd": _planes("zstd"),
    "parquet": _parquet("none"),
    "parquet+zstd": _parquet("zstd"),
}


def main(options: Options) -> None:
    """Write, read, compare, keep."""
    corpus = Corpus.open(options.corpus)
    shards = [corpus.read(name) for name, _ in corpus.shards("train")[: options.shards]]
    pixels_mb = sum(shard.nbytes for shard in shards) / 1e6
    places = {"disk": storage.absolute(options.out)} | ({"s3": options.s3} if options.s3 else {})
    rows: dict[str, dict[str, float]] = {}
    for name, of in FORMATS.items():
        data = [of.write(shard) for shard in shards]
        rows[name] = {"share_of_npy": round(sum(map(len, data)) / 1e6 / pixels_mb, 3)}
        for place in places.values():
            for number, content in enumerate(data):
                storage.write_bytes(storage.join(place, f"{name}-{number}"), content)
    times: dict[tuple[str, str], list[float]] = {(n, p): [] for n in FORMATS for p in places}
    for _ in range(options.rounds):
        for (name, where), spent in times.items():
            began = time.perf_counter()
            for number, shard in enumerate(shards):
                found = FORMATS[name].read(storage.mapped(storage.join(places[where], f"{name}-{number}")))
                total = found.sum(dtype=np.uint64)  # looks at every pixel
                assert total == shard.sum(dtype=np.uint64)
            spent.append(time.perf_counter() - began)
    for (name, where), spent in times.items():
        rows[name][f"{where}_MB_per_s"] = round(pixels_mb / median(spent))
    for name, row in rows.items():
        print(name, json.dumps(row))
    found = {"pixels_MB": round(pixels_mb), "shards": len(shards), "rows": rows, "machine": provenance.machine()}
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    picture = corpus.manifest["parameters"]["preprocessing"]["intensity"]
    RESULTS.write_text(json.dumps(known | {picture: found}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
