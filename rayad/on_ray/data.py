"""A patch corpus as a Ray Dataset, for whatever else learns from it."""

from typing import Any

import numpy as np
import ray.data

from rayad.errors import OptionError
from rayad.on_ray.cluster import quiet_data
from rayad.patches.corpus import Corpus


def read_corpus(url: str, split: str = "") -> ray.data.Dataset:
    """The patches of a corpus with their index, a row a patch; a shard is read by the task that needs it.

    `patch` holds the stored pixels, uint16 of full scale 65535, h w or h w c; `shard` and `row_in_shard` say where the
    patch is stored, and the other columns are those of the index (docs/formats.md), such as `patient_id` and `skin_mm`.
    Torch knows no texts, so columns are chosen for it:

        patches = read_corpus("s3://corpora/mammograms", "train").select_columns(["patch", "skin_mm"])
        for batch in patches.iter_torch_batches(batch_size=256):
            learn(batch["patch"])

    Args:
        url: of the corpus.
        split: train or validation; empty: both.

    Raises:
        FormatError: there is no corpus, or it is of another schema; a shard is damaged.
        OptionError: the corpus has no patch of this split.
    """
    corpus = Corpus.open(url)
    names = [shard["name"] for shard in corpus.manifest["shards"] if shard["patches"] and split in ("", shard["split"])]
    if not names:
        raise OptionError(f"{url}: no patch of the split {split!r}; a corpus has train and validation")
    quiet_data()
    shards = ray.data.from_items([{"shard": name} for name in names], override_num_blocks=len(names))
    return shards.map_batches(_Shard, fn_constructor_args=(corpus,), batch_size=1, compute=ray.data.ActorPoolStrategy())


class _Shard:
    """The rows of the shard that a batch names."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        (name,) = batch["shard"]
        index = self.corpus.index(shards=[name]).sort_values("row_in_shard")
        return {"patch": self.corpus.read(name)} | {column: index[column].to_numpy() for column in index}
