"""What a run tells Prometheus while it runs: Ray exports each as ray_rayad_NAME, of counters with _total behind it.

`dashboards/` draws them; a test asks a real Prometheus for each. Outside of Ray nothing is told.
"""

from functools import cache
from typing import Any

import ray
from ray.util import metrics

COUNTERS = {
    "ingest_images": ("Images that became patches or failed.", ("result",)),
    "ingest_patches": ("Patches that were written.", ()),
    "training_samples": ("Patches, or latents, that were learned from.", ("model",)),
    "training_seconds": ("Seconds of workers, by what they went to: work, data, agreement.", ("model", "part")),
    "faults": ("Workers that were lost or failed, by what they did.", ("stage",)),
    "scored_images": ("Images that were scored or failed.", ("result",)),
    "served_images": ("Images that the service scored, or refused.", ("result",)),
    "served_seconds": ("Seconds that images took, by what they went to: prepare, score.", ("part",)),
    "sweep_trials": ("Trials of a sweep that ended: whole, stopped, failed.", ("result",)),
}
"""Name -> what it counts, and its tags."""
GAUGES = {
    "training_epoch": ("Epoch that was finished last.", ("model",)),
    "training_loss": ("Losses of the last epoch: train_NAME, validation.", ("model", "loss")),
    "em_bits": ("Bits a dimension of the last epoch of expectation-maximization.", ("density", "split")),
    "gpu_bytes": ("Memory of the GPU that a worker has taken; 0 without a GPU.", ("model",)),
    "served_waiting": ("Images under way and waiting.", ()),
    "sweep_best": ("Objective of the best trial so far.", ("sweep",)),
}
"""Name -> what it says, and its tags."""
HISTOGRAMS = {
    "served_latency": ("Seconds from an image's arrival to its scores.", (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)),
}
"""Name -> what it measures, and the bounds of its buckets."""


def count(name: str, value: float, **tags: str) -> None:
    """Add to a counter."""
    if ray.is_initialized() and value > 0:
        _made(metrics.Counter, name, *COUNTERS[name]).inc(value, tags)


def show(name: str, value: float, **tags: str) -> None:
    """Set a gauge."""
    if ray.is_initialized():
        _made(metrics.Gauge, name, *GAUGES[name]).set(value, tags)


def observe(name: str, value: float) -> None:
    """Add to a histogram."""
    if ray.is_initialized():
        _histogram(name).observe(value)


@cache
def _histogram(name: str) -> Any:
    description, bounds = HISTOGRAMS[name]
    return metrics.Histogram(f"rayad_{name}", description, boundaries=list(bounds))


def tell(model: str, row: dict[str, float]) -> None:
    """What a worker knows after an epoch."""
    show("training_epoch", row["epoch"], model=model)
    count("training_samples", row.get("samples", 0), model=model)
    waits = {part: row.get(f"seconds_{part}", 0.0) for part in ("data", "agreement")}
    for part, seconds in waits.items():
        count("training_seconds", seconds, model=model, part=part)
    count("training_seconds", row["seconds"] - sum(waits.values()), model=model, part="work")
    circuit = "train" in row
    for name, value in row.items():
        if name in ("train", "validation") and circuit:
            show("em_bits", value, density=model, split=name)
        elif name == "validation" or name.startswith("train_"):
            show("training_loss", value, model=model, loss=name)
    import torch  # here what learns has it

    show("gpu_bytes", torch.cuda.memory_allocated() if torch.cuda.is_available() else 0, model=model)


@cache
def _made(kind: Any, name: str, description: str, tags: tuple[str, ...]) -> Any:
    return kind(f"rayad_{name}", description, tags)
