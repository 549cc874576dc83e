"""A corpus's patches to latents, a shard a task, on Ray Data; encoded once for every density that follows."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.data
import torch

from rayad import storage
from rayad.arrays import Latents
from rayad.on_ray.cluster import progress
from rayad.on_ray.train import pixels, reader
from rayad.patches.corpus import Corpus
from rayad.scoring.detector import Part

ROWS = 512
"""Patches a forward pass."""


@dataclass(frozen=True)
class EncodeShards:
    """A Ray Data map that encodes the shards it is handed, unless their latents are there."""

    corpus: Corpus
    model: Part
    url: str

    def __call__(self, batch: Any) -> Any:
        for shard in batch["shard"]:
            where = storage.join(self.url, f"{shard}.npy")
            if not storage.exists(where):
                buffer = io.BytesIO()
                np.save(buffer, self.latents(str(shard)), allow_pickle=False)
                storage.write_bytes(where, buffer.getvalue())
        return batch

    def latents(self, shard: str) -> np.ndarray:
        """float32, n m."""
        patches = reader(self.corpus, self.model.module)(shard)
        with torch.inference_mode():
            parts = [
                self.model.module.encode(pixels(patches[start : start + ROWS]))
                for start in range(0, len(patches), ROWS)
            ]
        return torch.cat(parts).numpy()


def encode(corpus: Corpus, model: Part, url: str) -> None:
    """Write the latents of every patch of the corpus, an npy file a shard, float32 n m."""
    shards = [{"shard": name} for split in ("train", "validation") for name, _ in corpus.shards(split)]
    encoded = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
        EncodeShards(corpus, model, url), batch_size=1
    )
    with progress(len(shards), f"latents to {url}") as step:
        for _ in encoded.iter_rows():
            step()


def read_latents(corpus: Corpus, url: str, split: str) -> Latents:
    """The latents of a split, n m, in the corpus's order."""
    files = [storage.join(url, f"{name}.npy") for name, _ in corpus.shards(split)]
    arrays = [np.load(io.BytesIO(storage.read_bytes(f)), allow_pickle=False) for f in files]
    return torch.from_numpy(np.concatenate(arrays))
