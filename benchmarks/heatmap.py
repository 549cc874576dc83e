"""How fast a heatmap is: dense scoring against the best patch loop, then end to end with a density.

    python benchmarks/heatmap.py                         # prints tables, writes benchmarks/results/heatmap.json
    python benchmarks/heatmap.py --precisions float32    # where the processor has no bfloat16

The encoder is the untrained CAE of the default size, the image noise: neither changes the work. Runs of what is
compared alternate, so that other work on the machine meets both; medians are reported, of wall-clock seconds and
of the process's CPU seconds, which other work disturbs less. The largest difference is that of the latents, in
their standard deviations. Where convolutions run at the processor's peak in both ways, dense scoring is as many
times faster as it is less work: about 7 times at 16 px and 22 at 8 px.
"""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import median
from typing import Literal, TypeVar

import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from rayad.arrays import Pixels
from rayad.density import spn
from rayad.models import cae
from rayad.scoring import dense
from rayad.tensors import Scores

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
Name = TypeVar("Name")
RESULTS = Path(__file__).parent / "results" / "heatmap.json"


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark."""

    side: int = 1024
    """Rows and columns of the image, in px."""
    runs: int = 7
    """Runs that a median is taken over."""
    threads: int = 1
    batches: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Batch sizes among which the best patch loop is sought."""
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    out: Path = RESULTS
    """Where the results are written."""


@dataclass(frozen=True)
class Times:
    """Medians over the runs, in seconds."""

    wall: float
    cpu: float
    runs: int


def main(options: Options) -> None:
    """Measure, print, and write the results."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).random((options.side, options.side), np.float32)
    facts = machine(options.threads, options.runs) | {"image": f"{options.side}x{options.side}"}
    show(facts)
    encoders, heatmaps = [], []
    for precision in options.precisions:
        encoders.append(rounded(compare_encoders(precision, pixels, options)))
        show(encoders[-1])
    for precision, step in product(options.precisions, (16, 8)):
        heatmaps.append(rounded(time_heatmap(precision, step, pixels, options)))
        show(heatmaps[-1])
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(facts | {"encoder": encoders, "heatmap": heatmaps}, indent=2) + "\n")


def compare_encoders(precision: str, pixels: Pixels, options: Options) -> dict[str, object]:
    """The encoder alone, all places at 16 px: dense against the best of the patch loops."""
    model = encoder(precision)
    loops = {
        (batch, layout): loop(encoder(precision, layout), pixels, batch)
        for batch in options.batches
        for layout in LAYOUTS
    }
    tried = alternate(loops, 1)
    best = min(tried, key=lambda key: tried[key].cpu)
    times = alternate({"dense": lambda: dense.encode(model, pixels, 16), "loop": loops[best]}, options.runs)
    one, other = dense.encode(model, pixels, 16), dense.encode_patches(model, pixels, 16)
    return {
        "precision": precision,
        "best loop": f"{best[0]} {best[1]}",
        **{f"{name} s": time.wall for name, time in times.items()},
        **{f"{name} CPU s": time.cpu for name, time in times.items()},
        "times faster": times["loop"].wall / times["dense"].wall,
        "times faster (CPU)": times["loop"].cpu / times["dense"].cpu,
        "times less work": operations(loops[best]) / operations(lambda: dense.encode(model, pixels, 16)),
        "largest difference": float((one - other).abs().max() / other.std()),
    }


def time_heatmap(precision: str, step: int, pixels: Pixels, options: Options) -> dict[str, object]:
    """Pixels to likelihoods at all places: the encoder in this precision, the density in float32."""
    model = encoder(precision)
    density = spn.Config().build(model.latents)
    density.start(dense.encode(model, pixels, 64), 0)

    def heatmap() -> Scores:
        with torch.inference_mode():
            return dense.likelihood(model, density.log_prob, pixels, step)

    times = alternate({"all": heatmap, "encoder": lambda: dense.encode(model, pixels, step)}, options.runs)
    return {
        "precision": precision,
        "step px": step,
        "places": len(heatmap()),
        "s": times["all"].wall,
        "CPU s": times["all"].cpu,
        "encoder CPU s": times["encoder"].cpu,
    }


def encoder(precision: str, layout: str = "channels last") -> cae.Autoencoder:
    """The CAE with weights in this precision and layout."""
    model = cae.Config().build().to(DTYPES[precision]).eval()
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=LAYOUTS[layout])
    return model


def loop(model: cae.Autoencoder, pixels: Pixels, batch: int) -> Callable[[], object]:
    """The patch loop with batches of this size."""
    return lambda: dense.encode_patches(model, pixels, 16, batch=batch)


def operations(work: Callable[[], object]) -> int:
    """Multiplications and additions of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def alternate(works: dict[Name, Callable[[], object]], runs: int, patience: float = float("inf")) -> dict[Name, Times]:
    """Medians of the times of each work; the works take turns, after one round that does not count.

    Args:
        patience: CPU seconds after which a work takes no more turns; its first one counts if it was the only one.
    """
    taken: dict[Name, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(runs + 1):
        for name, work in works.items():
            if sum(cpu for _, cpu in taken[name]) > patience:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    counted = {name: pairs[1:] or pairs for name, pairs in taken.items()}
    return {
        name: Times(median(wall for wall, _ in pairs), median(cpu for _, cpu in pairs), len(pairs))
        for name, pairs in counted.items()
    }


def machine(threads: int, runs: int) -> dict[str, object]:
    """What the figures were measured on."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": facts.get("model name", platform.processor()),
        **{flag: flag in flags for flag in ("avx512f", "avx512_bf16", "amx_bf16")},
        "torch": torch.__version__,
        "threads": threads,
        "runs": runs,
    }


def rounded(row: dict[str, object]) -> dict[str, object]:
    """Three digits of every measured value."""
    return {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in row.items()}


def show(row: dict[str, object]) -> None:
    """Print one row."""
    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
