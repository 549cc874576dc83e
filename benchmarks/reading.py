"""How fast a corpus is read for training, against a plain loop over memory-mapped arrays; from disk and from S3.

    python benchmarks/reading.py --corpus corpus --out reading
    python benchmarks/reading.py --corpus corpus --out reading --s3 s3://bucket/reading

One process, page cache warm; patches are those of a real corpus, over and over. Every loop delivers an epoch of
shuffled batches of 64 patches, as float32 in [0, 1]; all are run in turn, several times; medians count.

memmap       np.load(mmap_mode="r") of every shard, as a plain npy file; rows of a batch picked at random from four
rayad        `Order.batches`, as the training does
rayad-1      the same, an epoch whose shards are read, and so checked, for the first time
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import tyro

from rayad import provenance, storage
from rayad.fingerprint import fingerprint
from rayad.imaging.mammogram import Preprocessing
from rayad.imaging.picture import described
from rayad.patches.corpus import SCHEMA, SHARD, Corpus, packed
from rayad.patches.order import Order
from rayad.pipeline.train import pixels

RESULTS = Path(__file__).parent / "results" / "reading.json"
BATCH, WINDOW = 64, 4


@dataclass(frozen=True)
class Options:
    """What is read, and how often."""

    corpus: str
    """Whose patches the corpora have."""
    out: str
    """Local folder of the corpora."""
    s3: str = ""
    """The same on object storage; empty: not measured."""
    patches: int = 32768
    """Patches of a corpus; each has 8 KB."""
    shard_megabytes: tuple[int, ...] = (16, 32, 64, 128)
    rounds: int = 5


def made(url: str, patches: np.ndarray, number: int, shard_patches: int, plain: bool = False) -> Corpus:
    """A corpus of so many patches, unless it is there; plain: also every shard as an npy file."""
    if storage.exists(storage.join(url, "manifest.json")):
        return Corpus.open(url)
    shards = []
    for first in range(0, number, shard_patches):
        name, chosen = f"shard-{len(shards):05d}", np.take(patches, range(first, first + shard_patches), 0, mode="wrap")
        data, facts = packed(chosen)
        storage.write_bytes(storage.join(url, name + SHARD), data)
        if plain:
            np.save(storage.join(url, f"{name}.npy"), chosen)
        shards.append({"name": name, "split": "train", "patches": shard_patches, **facts})
    parameters = {"preprocessing": described(Preprocessing())}
    manifest = {"schema": SCHEMA, "shards": shards, "content": fingerprint(shards), "parameters": parameters}
    storage.write_json(storage.join(url, "manifest.json"), manifest)
    return Corpus.open(url)


def memmap_loop(corpus: Corpus, seed: int) -> Iterator[np.ndarray]:
    """What one would write by hand."""
    random, names = np.random.default_rng(seed), [name for name, _ in corpus.shards("train")]
    random.shuffle(names)
    for start in range(0, len(names), WINDOW):
        arrays = [np.load(f"{corpus.url}/{name}.npy", mmap_mode="r") for name in names[start : start + WINDOW]]
        places = np.concatenate([np.stack([np.full(len(a), k), np.arange(len(a))], 1) for k, a in enumerate(arrays)])
        random.shuffle(places)
        for first in range(0, len(places) // BATCH * BATCH, BATCH):
            chosen = places[first : first + BATCH]
            yield np.stack([arrays[k][row] for k, row in chosen])


def rayad_loop(corpus: Corpus, epoch: int) -> Iterator[np.ndarray]:
    """What the training does."""
    return Order(tuple(corpus.shards("train")), BATCH, window=WINDOW).batches(corpus.read, epoch)


def fourth_loop(corpus: Corpus, epoch: int) -> Iterator[np.ndarray]:
    """What the first of four workers does."""
    return Order(tuple(corpus.shards("train")), BATCH, window=WINDOW).batches(corpus.read, epoch, 0, 4)


def seconds(batches: Iterator[np.ndarray]) -> float:
    """Time of an epoch, and that it is whole."""
    began, total = time.perf_counter(), 0.0
    for batch in batches:
        total += float(pixels(batch)[0, 0, 0, 0])
    return time.perf_counter() - began


def main(options: Options) -> None:
    """Measure, print, keep."""
    torch.set_num_threads(1)
    rows, source = [], Corpus.open(options.corpus)
    patches = np.concatenate([source.read(name) for name, _ in source.shards("train")])
    for megabytes in options.shard_megabytes:
        shard_patches = megabytes * 2**20 // 8192
        local = made(storage.join(options.out, f"{megabytes}"), patches, options.patches, shard_patches, plain=True)
        loops = {"memmap": lambda n, c=local: memmap_loop(c, n), "rayad": lambda n, c=local: rayad_loop(c, n)}
        loops["rayad-fourth"] = lambda n, c=local: fourth_loop(c, n)
        loops["rayad-1"] = lambda n, c=local: rayad_loop(Corpus.open(c.url), n)
        if options.s3:
            remote = made(storage.join(options.s3, f"{megabytes}"), patches, options.patches, shard_patches)
            loops["rayad-s3"] = lambda n, c=remote: rayad_loop(c, n)
        times: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(options.rounds + 1):  # the first fills the page cache
            for name, loop in loops.items():
                spent = seconds(loop(number))
                times[name] += [spent] if number else []
        bytes_read = options.patches * 8192
        row = {"shard_megabytes": megabytes} | {
            name: {
                "MB_per_s": round(bytes_read / median(of) / 1e6),
                "of_memmap": round(median(times["memmap"]) / median(of), 2),
            }
            for name, of in times.items()
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    RESULTS.write_text(
        json.dumps({"rows": rows, "versions": provenance.versions(), "machine": provenance.machine()}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
