"""What a GPU brings: samples a second on it and on one core of the CPU beside it, and whether they agree.

    python benchmarks/gpu.py                 # a JSON line a figure; on a machine with a GPU also results/gpu.json
    python benchmarks/gpu.py --part circuit  # models, circuit or dense alone

It needs Python, torch, numpy and scipy alone. Every image model: the scores of patches, and a step of training.
The circuit of Dietrichstein et al. 2022 (C=1, I=45, D=1, R=50) over 64 latents: log p, and the statistics of
expectation-maximization. Dense scoring: the heatmap of an image of 1024 x 1024 px at places 8 px apart. A figure is the
median of several runs, after one that does not count; work on the GPU is waited for. Without a GPU the sizes are small:
then it checks itself.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch


class _Anything(type):
    """Stands for an annotation of jaxtyping where it is not installed: none is checked here."""

    def __getitem__(cls, item: object) -> type:
        return cls


if find_spec("jaxtyping") is None:
    nothing = ModuleType("jaxtyping")
    for kind in ("Bool", "Float", "Float32", "Int", "Int64", "Shaped", "UInt8", "UInt16"):
        setattr(nothing, kind, _Anything(kind, (), {}))
    sys.modules["jaxtyping"] = nothing
if find_spec("tyro") is None:  # options of commands are annotated by it, and there are no commands here
    sys.modules["tyro"] = SimpleNamespace(conf=SimpleNamespace(arg=lambda **_: None))  # pyright: ignore[reportArgumentType]

from rayad import catalog  # noqa: E402
from rayad.density import spn  # noqa: E402
from rayad.fit import Objective  # noqa: E402
from rayad.scoring import dense  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "gpu.json"
GPU = torch.cuda.is_available()
PATCHES = 1024 if GPU else 8
ROWS = (256, 4096, 32768) if GPU else (64,)
SIDE = 1024 if GPU else 160
RUNS = 7 if GPU else 1
SLOW = ("implicit_field", "mddpm")
"""Models that take seconds for a handful of patches."""


def main() -> None:
    """Measure the parts that are asked for, print every figure, and keep them where a GPU made them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="what is measured; all of it if nothing is said")
    chosen = parser.parse_args().part or list(PARTS)
    torch.set_num_threads(1)
    rows = []
    for part in chosen:
        for row in PARTS[part]():
            rows.append(row)
            print(json.dumps(row), flush=True)
    if GPU:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "when": when}
        RESULTS.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


def models() -> Iterator[dict[str, Any]]:
    """Every image model: scores of patches, and a step of training."""
    for name in catalog.names("models"):
        torch.manual_seed(0)
        number = PATCHES // 32 if name in SLOW else PATCHES
        model = catalog.configure("models", name).build()
        x = torch.rand(max(1, number), 1, 64, 64)
        yield compared(f"{name}: scores", len(x), lambda of, x=x: _first(of[0].eval().scores(of[1])), (model, x))
        yield compared(f"{name}: training step", len(x), _step, (model, x), agree=False)


def circuit() -> Iterator[dict[str, Any]]:
    """log p and statistics of the circuit, for several numbers of rows at once."""
    density = spn.Config(roots=1, inputs=45, depth=1, replicas=50).build(64)
    density.start(torch.randn(2000, 64), 0)
    for number in ROWS:
        z = torch.randn(number, 64)
        yield compared(f"circuit: log p of {number} rows", number, lambda of: of[0].log_prob(of[1]), (density, z))
        yield compared(
            f"circuit: statistics of {number} rows",
            number,
            lambda of: of[0].statistics(of[1]).log_likelihood[None],
            (density, z),
        )


def dense_scoring() -> Iterator[dict[str, Any]]:
    """The heatmap of an image by reconstruction-free latents and the circuit."""
    model = catalog.configure("models", "cae").build().eval()
    density = spn.Config(roots=1, inputs=45, depth=1, replicas=50).build(64)
    density.start(torch.randn(2000, 64), 0)
    pixels = np.random.default_rng(0).random((SIDE, SIDE), dtype=np.float32)

    def latents(of: tuple) -> torch.Tensor:
        return dense.encode(of[0], pixels, 8)

    def heatmap(of: tuple) -> torch.Tensor:
        return dense.likelihood(of[0], of[1].log_prob, pixels, 8)

    yield compared("dense: latents of an image", 1, latents, (model, density))
    yield compared("dense: heatmap of an image", 1, heatmap, (model, density))


def compared(
    what: str, samples: int, work: Callable[[tuple], torch.Tensor], parts: tuple[Any, ...], agree: bool = True
) -> dict[str, Any]:
    """Samples a second on the CPU and, where there is one, on the GPU, and their largest relative difference."""
    row: dict[str, Any] = {"what": what, "samples": samples}
    results = {}
    for device in ("cpu", "cuda") if GPU else ("cpu",):
        moved = tuple(part.to(device) for part in parts)
        try:
            seconds, results[device] = _timed(work, moved)
        except (RuntimeError, NotImplementedError) as error:  # a figure that is lacking is a line too
            row[device] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        row[f"{device}_a_second"] = round(samples / seconds, 2)
    if agree and len(results) == 2:
        cpu, gpu = results["cpu"].double(), results["cuda"].double().cpu()
        row["largest_difference"] = float(((gpu - cpu).abs() / cpu.abs().clamp_min(1e-6)).max())
    if "cuda_a_second" in row and "cpu_a_second" in row:
        row["times"] = round(row["cuda_a_second"] / row["cpu_a_second"], 1)
    return row


def _timed(work: Callable[[tuple], torch.Tensor], parts: tuple[Any, ...]) -> tuple[float, torch.Tensor]:
    """Median of the seconds that the work takes, and what it gives the first time."""
    first = work(parts).detach()
    seconds = []
    for _ in range(RUNS):
        _wait()
        began = time.perf_counter()
        work(parts)
        _wait()
        seconds.append(time.perf_counter() - began)
    return median(seconds), first


def _wait() -> None:
    if GPU:
        torch.cuda.synchronize()


@torch.inference_mode()
def _first(scores: dict[str, torch.Tensor]) -> torch.Tensor:
    return next(iter(scores.values()))


def _step(parts: tuple[Any, ...]) -> torch.Tensor:
    """A step of the first objective that a model is trained by; of a model without one, its sums over the patches."""
    model, x = parts
    items = [item for stage in model.train().stages() for item in stage]
    objectives = [item for item in items if isinstance(item, Objective)]
    if not objectives:
        return items[0].add(x)[0]
    objective = objectives[0]
    optimizer = torch.optim.Adam(objective.parameters, objective.learning_rate)
    optimizer.zero_grad()
    loss = objective.loss(x, lambda *shape: torch.randn(len(x), *shape, device=x.device)).mean()
    loss.backward()
    optimizer.step()
    return loss


PARTS: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "models": models,
    "circuit": circuit,
    "dense": dense_scoring,
}

if __name__ == "__main__":
    main()
