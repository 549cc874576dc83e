"""What one film at its native resolution takes: seconds of one thread and memory, with the paper's four models.

    python tests/papers.py tree --share 230 --height 4608 --width 3072 --spacing-mm 0.05
    python benchmarks/native.py --source tree/ddsm

The first film of a DDSM is read, prepared at 0.05 mm a pixel, and scored by untrained models of `preset=paper` at some
of its places 16 px apart; seconds are for all of its tissue. Circuits take the latents of each place besides.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro

from rayad import catalog, provenance
from rayad.datasets import ddsm
from rayad.datasets.exam import listed, source_of
from rayad.imaging.mammogram import Preprocessing
from rayad.scoring import dense
from rayad.scoring.scores import ModelScore, Part

RESULTS = Path(__file__).parent / "results" / "native.json"
SCORES = {"cae": "reconstruction", "bvae": "elbo", "vqvae": "reconstruction", "fanogan": "reconstruction"}
STEP = 16


@dataclass(frozen=True)
class Options:
    """What is scored."""

    source: str
    """Folder of a DDSM."""
    places: int = 512
    """Places of the tissue that are scored, about."""
    runs: int = 3
    """Runs that a median is taken over."""


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def main(options: Options) -> None:
    """Measure, print, keep."""
    torch.set_num_threads(1)
    dataset = ddsm.Dataset(options.source)
    exam = listed(dataset)[0][0]
    began = time.monotonic()
    source = source_of(dataset, exam)  # by another process
    reading = time.monotonic() - began
    preparation, prepared = timed(lambda: Preprocessing(spacing_mm=0.05).prepare(source))
    height, width = prepared.pixels.shape
    tissue = prepared.tissue[np.ix_(*dense.places(height, width, STEP))]
    some = tissue & (np.random.default_rng(0).random(tissue.shape) < options.places / tissue.sum())
    seconds = {"reading": reading, "preparation": preparation}
    for name, score in SCORES.items():
        config = catalog.configure("models", name, ("preset=paper",))
        model = ModelScore(Part(name, config, config.build().eval()), score)
        runs = [timed(lambda scorer=model: scorer.places(prepared, STEP, some))[0] for _ in range(options.runs)]
        seconds[name] = median(runs) * tissue.sum() / some.sum()
        print(f"{name}: {seconds[name]:.1f} s an image", flush=True)
    facts = {
        "size_px": [height, width],
        "places": int(tissue.sum()),
        "scored": int(some.sum()),
        "seconds": {name: round(float(value), 2) for name, value in seconds.items()},
        "peak_MB": getrusage(RUSAGE_SELF).ru_maxrss // 1000,
        "machine": provenance.machine(),
        "versions": provenance.versions(),
    }
    print(json.dumps(facts))
    RESULTS.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
