"""How fast a circuit is, beside the same circuit in other libraries.

    pip install --no-deps --requirement benchmarks/requirements-density.txt    # the peers; torch stays as it is
    OMP_NUM_THREADS=1 python benchmarks/density.py     # prints tables, writes benchmarks/results/density.json
    python benchmarks/density.py --table               # the tables of that file, as Markdown

All libraries hold a copy of rayad's circuit, with its region graph and parameters, so that their likelihoods must
agree: the largest relative difference is a column. Runs of what is compared alternate in one process, one thread;
speeds are samples a CPU second, from medians. A peer that is missing, fails, or would need too much memory is a row
that says so. Useful operations are those of the matrix products that a circuit cannot do without; their share of the
peak is of torch's matrix product, measured in the same run. Memory is what a fresh process takes on top of the model.
"""

import ctypes
import dataclasses
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module, util
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import torch
import tyro
from density_peers import PEERS, Peer, cirkit_categorical
from heatmap import alternate, machine, rounded, show

from rayad.density import spn
from rayad.density.spn import SPN

RESULTS = Path(__file__).parent / "results" / "density.json"
CIRCUITS = {
    "C=1 I=45 D=1 R=50": spn.Config(),
    "C=1 I=S=20 D=4 R=10": spn.Config(inputs=20, sums=20, depth=4, replicas=10),
}
VARIABLES, CODES = 64, 512
OPERATIONS = ("inference", "EM")
STEP = 0.01
"""Of the M-step, so that many of them on the same rows leave a circuit that is none too odd."""
ROWS_A_TURN = 1024
"""At least, that rayad is timed on: a small batch takes a few milliseconds."""
COPIES = {"inference": 2, "EM": 9}
"""Values of all leaves by variable, (rows, m, i, r), or of a level's sums before they are added, (rows, p, i j, s, r),
that a peer holds at a time; measured with SPFlow and cirkit."""


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark."""

    batches: tuple[int, ...] = (64, 1024, 16384)
    runs: int = 7
    """Runs that a median is taken over."""
    patience: float = 30.0
    """CPU seconds for each peer, operation and batch, after which it is not run again."""
    memory_gib: float = 6.0
    """What a peer may take; where it would need more it is not run."""
    scaling_s: float = 5.0
    """Seconds for which processes run side by side."""
    parts: tuple[str, ...] = ("parity", "speed", "memory", "categorical", "scaling")
    """What is measured; the file keeps the last results of the others."""
    circuits: tuple[str, ...] = tuple(CIRCUITS)
    """Of which parity, speed and memory are measured; the file keeps the last results of the others."""
    table: bool = False
    """Only print the tables of the last results, as Markdown."""


def main(options: Options) -> None:
    """Measure, print, and write the results, part by part."""
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found |= machine(1, options.runs)
    peak = sgemm_peak()
    show(rounded({name: value for name, value in found.items() if not isinstance(value, list)}))
    works = {
        "parity": lambda: chain.from_iterable(map(parity, options.circuits)),
        "speed": lambda: chain.from_iterable(speed(name, options) for name in options.circuits),
        "memory": lambda: chain.from_iterable(memory(name, options) for name in options.circuits),
        "categorical": lambda: categorical(options),
        "scaling": lambda: scaling(options.scaling_s),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    for part in options.parts:
        others = [row for row in found.get(part, ()) if row.get("circuit") in CIRCUITS.keys() - set(options.circuits)]
        rows = list(shown(works[part]()))
        if part == "speed":
            found["sgemm GFLOP/s"] = max(peak, sgemm_peak())
            for row in (row for row in rows if "GFLOP/s" in row):
                row["share of sgemm"] = f"{row['GFLOP/s'] / found['sgemm GFLOP/s']:.1%}"
        found[part] = others + rows
        RESULTS.write_text(json.dumps(rounded(found), indent=2) + "\n")


def shown(rows: Iterator[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Rounded rows, printed as they come."""
    for row in map(rounded, rows):
        show(row)
        yield row


# The works that are compared


def rayad_variants() -> dict[str, Callable[[], AbstractContextManager]]:
    """Name -> a context in which rayad's circuits are computed that way."""
    if util.find_spec("rayad.density.kernel") is None:
        return {"rayad (torch)": nullcontext}
    kernel = import_module("rayad.density.kernel")
    variants = {"rayad (torch)": partial(kernel.switched, False)}
    return variants | ({"rayad (kernel)": partial(kernel.switched, True)} if kernel.library() else {})


def rayad_works(circuit: SPN, operation: str) -> dict[str, Callable[[torch.Tensor], object]]:
    """The operation in all of rayad's ways, on rows as they are: standardized meanwhile."""

    def work(context: Callable[[], AbstractContextManager], z: torch.Tensor) -> object:
        with context():
            return circuit.log_prob(z) if operation == "inference" else circuit.update(circuit.statistics(z), STEP)

    return {name: partial(work, context) for name, context in rayad_variants().items()}


def started(name: str, dtype: torch.dtype = torch.float32) -> tuple[SPN, torch.Tensor]:
    """A circuit, and rows that it was started from."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(VARIABLES, VARIABLES, generator=generator) / VARIABLES**0.5
    z = (torch.randn(16384, VARIABLES, generator=generator) @ mix).to(dtype)
    circuit = CIRCUITS[name].build(VARIABLES).to(dtype)
    circuit.start(z[:4096], 0)
    return circuit, z


def mirror(name: str, circuit: SPN) -> Peer | str:
    """The peer's copy of a circuit, or why there is none."""
    try:
        return PEERS[name](circuit)
    except Exception as error:  # noqa: BLE001  whatever a peer raises is a row of the table
        return reason(error)


def reason(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


# Parity


def parity(name: str) -> Iterator[dict[str, object]]:
    """Largest relative difference between the likelihoods of 64 rows, with the same parameters."""
    differences: dict[str, dict[str, object]] = {peer: {"circuit": name, "peer": peer} for peer in PEERS}
    for dtype in (torch.float32, torch.float64):
        circuit, z = started(name, dtype)
        x = circuit.standardization(z[:64])
        mine = circuit.log_prob(z[:64]) + circuit.standardization.log_volume(x)
        for peer, row in differences.items():
            copy = mirror(peer, circuit)
            key = str(dtype).removeprefix("torch.")
            row[key] = copy if isinstance(copy, str) else float(((copy.log_prob(x) - mine) / mine).abs().max())
    yield from differences.values()


# Speed


def operations(config: spn.Config, variables: int, states: int = 0) -> dict[str, float]:
    """Useful operations a row: multiplications and additions of the matrix products, or look-ups of K states.

    Inference: leaves 4 R M I for (z, z^2) times natural parameters, or R M I additions of looked-up values; and W b of
    every sum, 2 i j; of sums in blocks 2 i j a block and 2 i a sum. EM on top of it: W^T a and a b^T of every sum, and
    the leaves' statistics, as many as they took.
    """
    replicas, depth = config.replicas, config.depth
    leaves = replicas * variables * config.inputs * (1 if states else 4)
    sums, nodes = 0, config.inputs
    for level in range(depth - 1, 0, -1):
        pairs = config.blocks * nodes**2 + config.sums * nodes if config.blocks else config.sums * nodes**2
        sums += replicas * 2**level * 2 * pairs
        nodes = config.sums
    sums += replicas * config.roots * 2 * (nodes**2 if depth else nodes)
    return {"inference": leaves + sums, "EM": 2 * leaves + 3 * sums}


def sgemm_peak() -> float:
    """Fastest of torch's float32 matrix products, in GFLOP a CPU second."""
    best = 0.0
    for side in (1024, 2048):
        a = torch.randn(side, side)
        times = [timed(lambda a=a: torch.mm(a, a)) for _ in range(6)]
        best = max(best, 2 * side**3 / min(times) / 1e9)
    return best


def timed(work: Callable[[], object]) -> float:
    """CPU seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def speed(name: str, options: Options) -> Iterator[dict[str, object]]:
    """Samples a CPU second of every library, operation and batch."""
    circuit, z = started(name)
    peers = {peer: mirror(peer, circuit) for peer in PEERS}
    config, x = circuit.config, circuit.standardization(z)
    useful = operations(config, VARIABLES)
    for operation in OPERATIONS:
        for batch in options.batches:
            often = max(1, ROWS_A_TURN // batch)
            works: dict[str, Callable[[], object]] = {
                way: partial(repeat, often, partial(work, z[:batch]))
                for way, work in rayad_works(circuit, operation).items()
            }
            notes: dict[str, str] = {}
            for peer, copy in peers.items():
                work = peer_work(copy, operation, config, batch, options.memory_gib)
                failure = work if isinstance(work, str) else tried(partial(work, x[:64]))
                if failure or isinstance(work, str):
                    notes[peer] = failure
                else:
                    works[peer] = partial(work, x[:batch])
            times = alternate(works, options.runs, options.patience)
            rayad = {way: often * batch / times[way].cpu for way in rayad_variants()}
            for way in [*rayad, *peers]:
                row: dict[str, object] = {"circuit": name, "operation": operation, "batch": batch, "library": way}
                if way in notes:
                    yield row | {"note": notes[way]}
                    continue
                rate = rayad.get(way, batch / times[way].cpu)
                yield row | {
                    "samples/CPU s": rate,
                    **{f"{mine} times as fast": own / rate for mine, own in rayad.items()},
                    "GFLOP/s": rate * useful[operation] / 1e9,
                    "runs": times[way].runs,
                    **({"note": "a step of Adam: it has no EM"} if adam(peers.get(way), operation) else {}),
                }


def repeat(often: int, work: Callable[[], object]) -> None:
    """Do it several times."""
    for _ in range(often):
        work()


def adam(copy: Peer | str | None, operation: str) -> bool:
    """Whether a gradient step stands for EM."""
    return operation == "EM" and isinstance(copy, Peer) and copy.em is None


def peer_work(
    copy: Peer | str, operation: str, config: spn.Config, batch: int, memory_gib: float
) -> Callable[[torch.Tensor], object] | str:
    """What a peer does as this operation, or why it cannot."""
    if isinstance(copy, str):
        return copy
    work = copy.log_prob if operation == "inference" else copy.em or copy.gradient
    needed = peer_gib(config, operation, batch)
    if work is None:
        return "no EM in this build"
    return f"would need about {needed:.0f} GiB" if needed > memory_gib else work


def peer_gib(config: spn.Config, operation: str, batch: int) -> float:
    """Memory that a peer will take, about."""
    leaves = VARIABLES * config.inputs
    sums = 2 ** (config.depth - 1) * config.inputs**2 * config.sums if config.depth > 1 else 0
    return COPIES[operation] * 4 * batch * max(leaves, sums) * config.replicas / 2**30


def tried(work: Callable[[], object]) -> str:
    """Why it fails, or nothing."""
    try:
        work()
    except Exception as error:  # noqa: BLE001  whatever a peer raises is a row of the table
        return reason(error)
    return ""


# Memory


def memory(name: str, options: Options) -> Iterator[dict[str, object]]:
    """MiB on top of the built model, of each library, operation and batch."""
    config = CIRCUITS[name]
    for library in [*rayad_variants(), *PEERS]:
        for operation in OPERATIONS:
            row: dict[str, object] = {"circuit": name, "library": library, "operation": operation}
            for batch in options.batches:
                needed = peer_gib(config, operation, batch)
                if library in PEERS and needed > options.memory_gib:
                    row[f"MiB, batch {batch}"] = f"would need about {needed:.0f} GiB"
                    continue
                row[f"MiB, batch {batch}"] = alone(peak_mib, name, library, operation, batch)
            yield row


def alone(work: Callable[..., object], *arguments: object) -> object:
    """The result of a fresh process, or why it failed."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except Exception as error:  # noqa: BLE001  a process that the system ends is a row as well
            return reason(error)


def peak_mib(name: str, library: str, operation: str, batch: int) -> float | str:
    """Growth of the process from the built model, which has seen a few rows, to its largest size."""
    torch.set_num_threads(1)
    circuit, z = started(name)
    if library in PEERS:
        copy = PEERS[library](circuit)
        work = copy.log_prob if operation == "inference" else copy.em or copy.gradient
        if work is None:
            return "no EM in this build"
    else:
        work = rayad_works(circuit, operation)[library]
    rows = circuit.standardization(z)[:batch].clone()
    work(rows[:2])
    return taken_mib(partial(work, rows))


def taken_mib(work: Callable[[], object]) -> float:
    """Growth of this process, in MiB, after what its allocator keeps has gone back to Linux."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the largest size so far is forgotten
    before = _status_mib("VmRSS")
    work()
    return _status_mib("VmHWM") - before


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


# Categorical leaves


def categorical(options: Options) -> Iterator[dict[str, object]]:
    """64 variables of 512 states, batch 64: rayad and cirkit, the one peer that looks values up."""
    case: dict[str, object] = {"circuit": f"{next(iter(CIRCUITS))} K={CODES}", "batch": 64}
    if "states" not in {field.name for field in dataclasses.fields(spn.Config)}:
        yield case | {"library": "rayad", "note": "no categorical leaves yet"}
        return
    config = dataclasses.replace(spn.Config(), **{"states": (CODES,)})
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(CODES, (1024, VARIABLES), generator=generator).float()
    circuit = config.build(VARIABLES)
    circuit.start(z, 0)
    useful = operations(config, VARIABLES, CODES)
    try:
        peer = cirkit_categorical(circuit.config, VARIABLES, CODES)
    except Exception as error:  # noqa: BLE001  whatever a peer raises is a row of the table
        peer = None
        yield case | {"library": "cirkit (EM build)", "note": reason(error)}
    for operation in OPERATIONS:
        works = {way: partial(work, z[:64]) for way, work in rayad_works(circuit, operation).items()}
        if peer:
            theirs = peer.log_prob if operation == "inference" else peer.em
            works["cirkit (EM build)"] = partial(cast(Callable, theirs), z[:64].long())
        for way, times in alternate(works, options.runs, options.patience).items():
            rate = 64 / times.cpu
            yield case | {
                "operation": operation,
                "library": way,
                "samples/CPU s": rate,
                "Gop/s": rate * useful[operation] / 1e9,
                "runs": times.runs,
            }


# Two processes


def scaling(seconds: float) -> Iterator[dict[str, object]]:
    """Throughput of two processes of one thread over that of one, and the same of matrix products."""
    gains = {}
    for work in (*rayad_variants(), "sgemm"):
        one, two = throughput(work, 1, seconds), throughput(work, 2, seconds)
        gains[work] = two / one
        yield {"work": work, "one process, /s": one, "two processes, /s": two, "times": gains[work]}
    for work in rayad_variants():
        yield {"work": f"{work} over sgemm", "times": gains[work] / gains["sgemm"]}


def throughput(work: str, processes: int, seconds: float) -> float:
    """Rounds a second of all processes together, by the clock."""
    context = get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, mp_context=context) as pool:
        gate = manager.Barrier(processes)
        return sum(pool.map(partial(rounds, work, seconds), [gate] * processes))


def rounds(work: str, seconds: float, gate) -> float:
    """Rounds a second: samples in batches of 1,024, or matrix products."""
    torch.set_num_threads(1)
    if work == "sgemm":
        a = torch.randn(1024, 1024)
        size, step = 1, partial(torch.mm, a, a)
    else:
        circuit, z = started(next(iter(CIRCUITS)))
        size, step = 1024, partial(rayad_works(circuit, "inference")[work], z[:1024])
    step()
    gate.wait()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        done += size
    return done / (time.perf_counter() - start)


# Tables


def markdown(results: dict) -> str:
    """The tables of the results."""
    tables = {name: rows for name, rows in results.items() if isinstance(rows, list)}
    facts = ", ".join(f"{name} {value}" for name, value in results.items() if name not in tables)
    return "\n\n".join([facts, *(f"**{name}**\n\n{table(rows)}" for name, rows in tables.items())])


def table(rows: list[dict]) -> str:
    """Markdown, with a column for each key."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    body = ["| " + " | ".join(cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join([*lines, *body])


def cell(value: object) -> str:
    """A number with thousands separators, or text."""
    return f"{value:,.0f}" if isinstance(value, float) and abs(value) >= 1000 else str(value)


if __name__ == "__main__":
    chosen = tyro.cli(Options)
    if chosen.table:
        sys.exit(print(markdown(json.loads(RESULTS.read_text()))))
    main(chosen)
