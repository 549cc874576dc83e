"""A corpus's patches to latents, a shard a task, on Ray Data; encoded once for every density that follows."""

import io

import numpy as np
import torch

from rayad import bounded, storage
from rayad.errors import TrainingError
from rayad.on_ray.cluster import each
from rayad.on_ray.train import pixels, reader
from rayad.patches.corpus import LEARNING_SPLITS, Corpus
from rayad.scoring.detector import Part
from rayad.tensors import Latents

ROWS = 512
"""Patches a forward pass."""


def encode(corpus: Corpus, model: Part, url: str) -> None:
    """Write the latents of every patch of the corpus, an npy file a shard, float32 n m; those that are there stay."""
    names = [name for split in LEARNING_SPLITS for name, _ in corpus.shards(split)]
    lost = each(lambda i: encode_shard(corpus, model, url, names[i]), len(names), f"latents to {url}")
    if lost:
        raise TrainingError(f"{names[lost[0]]} of {corpus.url}: the process that encoded it ended, each time")


def encode_shard(corpus: Corpus, model: Part, url: str, shard: str) -> None:
    """Write the latents of one shard, unless they are there; TrainingError if one is no number."""
    where = storage.join(url, f"{shard}.npy")
    if storage.exists(where):
        return
    patches, module = reader(corpus, model.module)(shard), model.module
    with torch.inference_mode():
        starts = range(0, len(patches), ROWS)
        latents = torch.cat([module.encode(pixels(patches[start : start + ROWS])) for start in starts])
    if not latents.isfinite().all():
        row = int((~latents.isfinite()).any(1).nonzero()[0])
        raise TrainingError(f"{model.name} has no latents of patch {row} of {shard}: they are not finite")
    buffer = io.BytesIO()
    np.save(buffer, latents.numpy(), allow_pickle=False)
    storage.write_bytes(where, buffer.getvalue())


def read_latents(corpus: Corpus, url: str, split: str) -> Latents:
    """The latents of a split, n m, in the corpus's order."""
    files = [storage.join(url, f"{name}.npy") for name, _ in corpus.shards(split)]
    arrays = [bounded.load_npy(storage.read_bytes(file), file) for file in files]
    return torch.from_numpy(np.concatenate(arrays))
