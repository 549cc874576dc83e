"""How fast a corpus is made, and that memory does not grow with it.

    python benchmarks/ingest.py --out ingest
    python benchmarks/ingest.py --out ingest --dataset mias --source mini-mias

Corpora of growing size are made of the first so many images of a data set, each on a Ray of its own whose object store
is small; meanwhile the memory of the driver and of every worker is watched, and what the object store holds. Then one
worker trains an epoch on the corpus.
"""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import tyro
from watch import looking, private_bytes, store_bytes

from rayad import catalog, provenance, storage
from rayad.fit import Schedule
from rayad.on_ray.cluster import quiet_data
from rayad.on_ray.pool import OnRay
from rayad.patches.corpus import Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.ingest import ingest
from rayad.pipeline.train import train
from rayad.pool import Workers
from rayad.private import keep_private

RESULTS = Path(__file__).parent / "results" / "ingest.json"
STORE = 80_000_000
"""Bytes of the object store, about the least that Ray takes."""
RAY: dict[str, Any] = {
    "address": "local",
    "include_dashboard": False,
    "object_store_memory": STORE,
    "log_to_driver": False,
    "logging_level": "ERROR",
}


@dataclass(frozen=True)
class Options:
    """What is ingested."""

    out: str
    """Folder or URL of the corpora; they are removed."""
    dataset: str = "phantom"
    settings: tuple[str, ...] = ("height=512", "width=384", "diseased=0.0")
    source: str = ""
    images: tuple[int, ...] = (120, 480, 1920)
    patches: int = 100
    """Of an image."""
    workers: int = 2


@dataclass
class Watch:
    """The most memory that was seen, in bytes."""

    driver: int = 0
    worker: int = 0
    """Of the largest worker."""
    store: int = 0

    def look(self) -> None:
        """Once."""
        this = psutil.Process()
        self.driver = max(self.driver, private_bytes(this))
        for process in this.children(recursive=True):
            with suppress(psutil.Error):  # it ended
                if process.name().startswith("ray::"):
                    self.worker = max(self.worker, private_bytes(process))
        self.store = max(self.store, store_bytes())


@dataclass(frozen=True)
class First:
    """The first images of a data set."""

    base: Any
    images: int

    def exams(self) -> list[Any]:
        return self.base.exams()[: self.images]

    def pixels(self, exam: Any) -> Any:
        return self.base.pixels(exam)

    def lesion_mask(self, exam: Any, lesion: Any) -> Any:
        return self.base.lesion_mask(exam, lesion)


def measured(options: Options, images: int) -> dict[str, Any]:
    """One corpus: how fast, how much memory, and the same of an epoch on it."""
    settings = dict(pair.split("=", 1) for pair in options.settings)
    if options.dataset == "phantom":
        settings["patients"] = str(images)
    given = settings | ({"source": options.source} if options.source else {})
    dataset = First(catalog.configure("datasets", options.dataset, given), images)
    url = storage.join(storage.absolute(options.out), f"corpus-{images}")
    storage.remove(url)
    ray.init(num_cpus=options.workers, **RAY)
    quiet_data()
    try:
        began = time.perf_counter()
        making = Watch()
        with looking(making.look):
            manifest = ingest(
                OnRay(), dataset, url, Ingest(sampling=Sampling(options.patches)), {"dataset": options.dataset}
            )
        seconds = time.perf_counter() - began
    finally:
        ray.shutdown()
    ray.init(num_cpus=3, **RAY)
    try:
        config = catalog.configure("models", "cae", {"width": 4, "latents": 8})
        learning = Watch()
        with looking(learning.look):
            train(OnRay(Workers(1)), url, "cae", config, Schedule(epochs=1, batch=256), f"{url}/model")
    finally:
        ray.shutdown()
    stored = manifest["patches"] * 64 * 64 * 2
    storage.remove(url)
    return {
        "images": manifest["images"],
        "patches": manifest["patches"],
        "corpus_MB": round(stored / 1e6),
        "of_object_store": round(stored / STORE, 1),
        "seconds": round(seconds, 1),
        "images_per_s": round(manifest["images"] / seconds, 2),
        "patches_per_s": round(manifest["patches"] / seconds),
        "ingest_MB": {
            "driver": making.driver // 10**6,
            "worker": making.worker // 10**6,
            "store": making.store // 10**6,
        },
        "training_MB": {
            "driver": learning.driver // 10**6,
            "worker": learning.worker // 10**6,
            "store": learning.store // 10**6,
        },
    }


def main(options: Options) -> None:
    """Measure, print, keep."""
    keep_private()
    rows = []
    for images in options.images:
        rows.append(measured(options, images))
        print(json.dumps(rows[-1]), flush=True)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found = {"rows": rows, "machine": provenance.machine(), "workers": options.workers, "patches": options.patches}
    RESULTS.write_text(json.dumps(known | {options.dataset: found}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
