"""How time and memory of a circuit grow with each of its sizes, against the operations that they predict.

    OMP_NUM_THREADS=1 python benchmarks/density_scaling.py     # prints, writes results/density_scaling.json and a plot

One size is swept, the others stay. The slope is that of log CPU seconds over log useful operations (`operations` of
density.py), by least squares: 1 where time follows the operations, less where a part of the work does not grow. Memory
is the growth of the process during the work, above the built circuit. The number of states of codes is no work (values
are looked up), so for it the longest time over the shortest is given.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
import tyro
from density import OPERATIONS, operations, rayad_variants, rayad_works, taken_mib
from heatmap import alternate, machine, rounded, show

from rayad.density import spn

mpl.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results" / "density_scaling.json"
PLOT = Path(__file__).parents[1] / "docs" / "density-scaling.png"
SWEEPS: dict[str, tuple[int, ...]] = {
    "roots": (1, 2, 4, 8, 16),
    "inputs": (10, 20, 40, 80),
    "depth": (0, 1, 2, 3, 4, 5),
    "replicas": (5, 10, 20, 40, 80),
    "variables": (16, 32, 64, 128, 256),
    "states": (8, 64, 512),
}


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark."""

    rows: int = 1024
    runs: int = 5
    """Runs that a median is taken over."""
    variables: int = 64
    circuit: spn.Config = spn.Config(inputs=20, sums=20, depth=1, replicas=20)
    """What the sweeps start from."""


def main(options: Options) -> None:
    """Measure, fit, print, plot, and write the results."""
    torch.set_num_threads(1)
    points = []
    for size, values in SWEEPS.items():
        if size == "states" and "states" not in {field.name for field in fields(spn.Config)}:
            show({"size": size, "note": "no categorical leaves yet"})
            continue
        for value in values:
            for point in measure(size, value, options):
                points.append(rounded(point))
                show(points[-1])
    slopes = [rounded(slope) for slope in fits(points)]
    for slope in slopes:
        show(slope)
    plot(points, slopes)
    RESULTS.parent.mkdir(exist_ok=True)
    facts = machine(1, options.runs) | {"rows": options.rows, "circuit": repr(options.circuit)}
    RESULTS.write_text(json.dumps(facts | {"slopes": slopes, "points": points}, indent=2) + "\n")


def measure(size: str, value: int, options: Options) -> Iterator[dict[str, object]]:
    """Time and memory of one circuit in all of rayad's ways."""
    variables = value if size == "variables" else options.variables
    changes: dict = {} if size == "variables" else {size: (value,) if size == "states" else value}
    config = replace(options.circuit, **changes)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(options.rows, variables, generator=generator)
    z = z if size != "states" else torch.randint(value, z.shape, generator=generator).float()
    circuit = config.build(variables)
    circuit.start(z, 0)
    useful = operations(config, variables, value if size == "states" else 0)
    for operation in OPERATIONS:
        works = {way: lambda work=work: work(z) for way, work in rayad_works(circuit, operation).items()}
        times = alternate(works, options.runs)
        for way in rayad_variants():
            yield {
                "size": size,
                "value": value,
                "operation": operation,
                "library": way,
                "CPU s": times[way].cpu,
                "Mop a row": useful[operation] / 1e6,
                "GFLOP/s": options.rows * useful[operation] / times[way].cpu / 1e9,
                "MiB": taken_mib(works[way]),
            }


def fits(points: list[dict]) -> Iterator[dict[str, object]]:
    """Slope of the logarithms of time over operations for each sweep, and how much of the variance it explains."""
    keys = dict.fromkeys((p["size"], p["operation"], p["library"]) for p in points)
    for size, operation, library in keys:
        own = [p for p in points if (p["size"], p["operation"], p["library"]) == (size, operation, library)]
        x, y = (np.log([p[name] for p in own]) for name in ("Mop a row", "CPU s"))
        row: dict[str, object] = {"size": size, "operation": operation, "library": library}
        if np.ptp(x) == 0:  # of codes, whose number is no work
            yield row | {"times as long": float(np.exp(np.ptp(y)))}
            continue
        slope, _ = np.polyfit(x, y, 1)
        yield row | {"slope": float(slope), "R2": float(np.corrcoef(x, y)[0, 1] ** 2)}


def plot(points: list[dict], slopes: list[dict]) -> None:
    """A panel for each operation and library: CPU seconds over predicted operations, a line for each size."""
    kinds = list(dict.fromkeys((p["operation"], p["library"]) for p in points))
    figure, axes = plt.subplots(2, len(kinds) // 2, figsize=(5 * len(kinds) // 2, 8), sharex=True, sharey=True)
    for (operation, library), axis in zip(kinds, axes.T.flat, strict=True):
        for fitted in (s for s in slopes if (s["operation"], s["library"]) == (operation, library)):
            own = [p for p in points if all(p[key] == fitted[key] for key in ("size", "operation", "library"))]
            found = (
                f"slope {fitted['slope']:.2f}" if "slope" in fitted else f"{fitted['times as long']:.2f} times as long"
            )
            label = f"{fitted['size']}, {found}"
            axis.loglog([p["Mop a row"] for p in own], [p["CPU s"] for p in own], "o-", markersize=3, label=label)
        axis.set_title(f"{library}, {operation}")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.supylabel("CPU seconds")
    figure.supxlabel("predicted million operations a row")
    figure.tight_layout()
    figure.savefig(PLOT, dpi=120)


if __name__ == "__main__":
    main(tyro.cli(Options))
