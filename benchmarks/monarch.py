"""What sums in blocks (Monarch matrices, Zhang et al. 2025) are worth: test bits beside those of dense sums.

    OMP_NUM_THREADS=1 python benchmarks/monarch.py --run runs/mias    # writes benchmarks/results/monarch.json

Circuits of depth 4 with 10 replicas over the latents of a finished run's healthy training patches, divided by patient
for training and validation; test rows are those of its validation patients. Every circuit is learned by EM as rayad
does it by default, and taken at its best epoch on validation rows. Operations are the multiplications and additions of
the matrix products of a row's log p. Rows a CPU second are those of torch, which computes all circuits the same way:
the compiled kernel knows dense sums alone.
"""

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
import tyro
from density import operations
from density_quality import Options as Quality
from density_quality import Rows, Setting, bits, fit, loaded
from heatmap import machine, rounded, show

from rayad.density import em, kernel, spn

RESULTS = Path(__file__).parent / "results" / "monarch.json"
DEEP = spn.Config(depth=4, replicas=10)
CIRCUITS = [  # inputs and sums, blocks; those of one group cost about the same
    [(10, 0), (16, 2), (20, 1)],
    [(20, 0), (40, 4), (32, 4), (64, 1)],
    [(20, 20), (20, 4), (20, 2)],
]


@dataclass(frozen=True)
class Options:
    """What is compared."""

    run: Path
    """Folder of a finished `rayad run`."""
    detector: str = "cae-spn"
    """Of the run, whose model encodes."""
    groups: tuple[int, ...] = (0, 1, 2)
    """Of `CIRCUITS`, in this order."""
    seeds: int = 3
    epochs: int = 60
    """At most."""
    out: Path = RESULTS
    """Where the results are written."""


def main(options: Options) -> None:
    """Learn, print, and write the results, circuit by circuit."""
    torch.set_num_threads(1)
    seeds = loaded(options.detector, Quality(seeds=options.seeds, run=options.run))
    facts, rows = machine(1, options.seeds), []
    for group in options.groups:
        for nodes, blocks in CIRCUITS[group]:
            config = replace(DEEP, inputs=nodes, sums=nodes, blocks=blocks)
            rows.append(rounded({"group": group, "I=S": nodes, "blocks": blocks} | measured(config, seeds, options)))
            show(rows[-1])
            options.out.write_text(json.dumps(facts | {"circuits": rows}, indent=2) + "\n")


def measured(config: spn.Config, seeds: list[Rows], options: Options) -> dict[str, object]:
    """Operations, weights, speed and test bits of a circuit."""
    setting = Setting(config, em.EM(epochs=options.epochs))
    circuits = [fit(setting, rows, seed) for seed, rows in enumerate(seeds)]
    variables = seeds[0].train.shape[1]
    learned = zip(circuits, seeds, strict=True)
    test = np.array([bits(circuit.log_prob(rows.test), variables) for circuit, rows in learned])
    return {
        "MFLOP": operations(config, variables)["inference"] / 1e6,
        "weights": sum(table.numel() for table in circuits[0].tables()),
        "log p rows/s": speed(circuits[0], seeds[0].test),
        "test bits": float(test.mean()),
        "spread": float(test.std()),
    }


def speed(circuit: spn.SPN, z: torch.Tensor) -> float:
    """Rows a CPU second of torch, the median of 5 runs."""
    z = z.repeat(math.ceil(1024 / len(z)), 1)[:1024]
    seconds = []
    with kernel.switched(False):
        for _ in range(5):
            began = time.process_time()
            circuit.log_prob(z)
            seconds.append(time.process_time() - began)
    return len(z) / median(seconds)


if __name__ == "__main__":
    main(tyro.cli(Options))
