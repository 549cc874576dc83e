"""A corpus's patches to latents, a shard an item of the pool; encoded once for every density that follows."""

import io
from dataclasses import dataclass

import numpy as np
import torch

from rayad import bounded, storage
from rayad.errors import TrainingError
from rayad.models._blocks import PATCH_PX, patch_of
from rayad.patches.corpus import ALL_LANES, LEARNING_SPLITS, Corpus
from rayad.pipeline.detectors import require_fits
from rayad.pipeline.train import pixels, reader
from rayad.pool import Pool
from rayad.scoring.scores import Part
from rayad.tensors import Latents, like

ROWS = 512
"""Patches of 64 px a forward pass; of other sides, as many pixels."""


def encode(pool: Pool, corpus: Corpus, model: Part, url: str) -> None:
    """Write the latents of every patch of the corpus, an npy file a shard, float32 n m; those that are there stay.

    Raises:
        OptionError: the model is of other patches than the corpus has.
        TrainingError: latents that are not numbers.
    """
    require_fits(model.name, model.config, corpus)
    names = [name for split in LEARNING_SPLITS for name, _ in corpus.shards(split)]
    for outcome in pool.map(EncodeShard, names, f"latents to {url}", (corpus, model, url, pool.device), _unencoded):
        if outcome:
            raise TrainingError(f"{corpus.url}: {outcome}")


def _unencoded(why: str, shard: str) -> str:
    return f"{shard}: {why}"


@dataclass(frozen=True)
class EncodeShard:
    """Encodes shards with one model, which it keeps."""

    corpus: Corpus
    model: Part
    url: str
    device: str = "cpu"

    def __call__(self, shard: str) -> str:
        self.model.module.to(self.device)
        encode_shard(self.corpus, self.model, self.url, shard)
        return ""


def encode_shard(corpus: Corpus, model: Part, url: str, shard: str) -> None:
    """Write the latents of one shard, unless they are there; TrainingError if one is no number."""
    latents_url = storage.join(url, f"{shard}.npy")
    if storage.exists(latents_url):
        return
    buffer = io.BytesIO()
    np.save(buffer, encoded(corpus, model, shard).numpy(), allow_pickle=False)
    storage.write_bytes(latents_url, buffer.getvalue())


def encoded(corpus: Corpus, model: Part, shard: str) -> Latents:
    """The latents of one shard, on the CPU; TrainingError if one is no number."""
    patches, module = reader(corpus, model.module)(shard, ALL_LANES), model.module
    with torch.inference_mode():
        rows = max(1, ROWS * PATCH_PX**2 // patch_of(module) ** 2)
        batches = (pixels(patches[i : i + rows]).to(like(module)) for i in range(0, len(patches), rows))
        latents = torch.cat([module.encode(batch).cpu() for batch in batches])
    if not latents.isfinite().all():
        row = int((~latents.isfinite()).any(1).nonzero()[0])
        raise TrainingError(f"{model.name}: the latents of patch {row} of {shard} are not finite")
    return latents


def read_latents(corpus: Corpus, url: str, split: str, rank: int = 0, world: int = 1) -> Latents:
    """The latents of a split, n m, in the corpus's order; of several workers, the share of one."""
    parts = []
    for name, rows in corpus.share(split, rank, world):
        file = storage.join(url, f"{name}.npy")
        parts.append(bounded.load_npy(storage.read_bytes(file), file)[rows].copy())
    return torch.from_numpy(np.concatenate(parts))
