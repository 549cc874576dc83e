"""How fast a corpus is read for training, against a plain loop over memory-mapped arrays; from disk and from S3.

    python benchmarks/reading.py --out reading
    python benchmarks/reading.py --out reading --s3 s3://bucket/reading

One process, one thread of work, page cache warm. Every loop delivers an epoch of shuffled batches of 64 patches, as
float32 in [0, 1]; all are run in turn, several times; medians count.

memmap       np.load(mmap_mode="r") of every shard, rows of a batch picked at random from four shards
rayad        `Order.batches`, as the training does
rayad-1      the same, an epoch whose shards are read, and so checked, for the first time
"""

import hashlib
import io
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
from rayad.on_ray.train import pixels
from rayad.patches.corpus import Corpus, fingerprint
from rayad.patches.order import Order

RESULTS = Path(__file__).parent / "results" / "reading.json"
BATCH, WINDOW = 64, 4


@dataclass(frozen=True)
class Options:
    """What is read, and how often."""

    out: str
    """Local folder of the corpora."""
    s3: str = ""
    """The same on object storage; empty: not measured."""
    patches: int = 32768
    """Patches of a corpus; each has 8 KB."""
    shard_megabytes: tuple[int, ...] = (16, 32, 64, 128)
    rounds: int = 5


def made(url: str, patches: int, shard_patches: int) -> Corpus:
    """A corpus of noise with mammogram-like smoothness, unless it is there."""
    if storage.exists(storage.join(url, "manifest.json")):
        return Corpus.open(url)
    random, shards = np.random.default_rng(0), []
    for number in range(patches // shard_patches):
        smooth = random.integers(0, 4096, (shard_patches, 16, 16), dtype=np.uint16).repeat(4, 1).repeat(4, 2)
        buffer = io.BytesIO()
        np.save(buffer, smooth * 8 + random.integers(0, 256, (shard_patches, 64, 64), dtype=np.uint16))
        name = f"shard-{number:05d}"
        storage.write_bytes(storage.join(url, f"{name}.npy"), buffer.getvalue())
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        shards.append({"name": name, "split": "train", "patches": shard_patches, "images": 1, "sha256": digest})
    storage.write_json(
        storage.join(url, "manifest.json"), {"schema": 1, "shards": shards, "content": fingerprint(shards)}
    )
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


def seconds(batches: Iterator[np.ndarray]) -> float:
    """Time of an epoch, and that it is whole."""
    began, total = time.perf_counter(), 0.0
    for batch in batches:
        total += float(pixels(batch)[0, 0, 0, 0])
    return time.perf_counter() - began


def main(options: Options) -> None:
    """Measure, print, keep."""
    torch.set_num_threads(1)
    rows = []
    for megabytes in options.shard_megabytes:
        shard_patches = megabytes * 2**20 // 8192
        local = made(storage.join(options.out, f"{megabytes}"), options.patches, shard_patches)
        loops = {"memmap": lambda n, c=local: memmap_loop(c, n), "rayad": lambda n, c=local: rayad_loop(c, n)}
        loops["rayad-1"] = lambda n, c=local: rayad_loop(Corpus.open(c.url), n)
        if options.s3:
            remote = made(storage.join(options.s3, f"{megabytes}"), options.patches, shard_patches)
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
