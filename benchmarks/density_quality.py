"""How good a fit is: test bits a dimension of rayad's circuits and of other densities, on tables and on latents.

    OMP_NUM_THREADS=1 python benchmarks/density_quality.py                        # digits and breast-cancer
    OMP_NUM_THREADS=1 python benchmarks/density_quality.py --run runs/mias        # latents of a finished run

Lower is better. All densities see the same rows, standardized by mean and deviation of the training rows, and bits are
those of standardized values. Digits are integers and some columns are constant: noise from [0, 1) is added to every
value, so that a density cannot grow without bound on a value that repeats. Test rows are the same for all seeds, a
seed divides the others and starts the fits. Latents are those of a run's healthy training patches, divided by patient
for training and validation; test rows are those of its validation patients. What the script chooses (settings, number
of components, epoch) it chooses on validation rows; rayad's settings are sought one axis after the other. The settings
that are tried (principal axes and narrow leaves among them) and SPFlow's start were settled by hand, after test figures
of the tables and of the CAE's latents had been seen: the choice itself sees validation rows alone.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from heatmap import machine, rounded, show
from sklearn import datasets
from sklearn.mixture import GaussianMixture
from torch import Tensor

from rayad.density import em, spn
from rayad.errors import RayadError
from rayad.patches.corpus import Corpus
from rayad.scoring.bundle import load

RESULTS = Path(__file__).parent / "results" / "density_quality.json"


@dataclass(frozen=True)
class Options:
    """What is compared."""

    seeds: int = 3
    run: Path | None = None
    """Folder of a finished `rayad run`, whose latents take the place of the tables."""
    detectors: tuple[str, ...] = ("cae-spn", "bvae-spn")
    """Of the run, whose models encode."""
    out: Path = RESULTS
    """Where the results are written."""
    epochs: int = 100
    """At most, of rayad's fits."""
    spflow_epochs: int = 30
    """At most; 0 leaves SPFlow out."""
    search_seeds: int = 2
    """Divisions of the rows whose mean validation bits decide between settings; one is not enough for small tables."""
    rounds: int = 1
    """How often all axes of rayad's settings are gone through."""


@dataclass(frozen=True)
class Rows:
    """Standardized rows."""

    train: Tensor
    validation: Tensor
    test: Tensor


@dataclass(frozen=True)
class Setting:
    """How a circuit of rayad is built and learned."""

    circuit: spn.Config
    em: em.EM

    def change(self, name: str, value: object) -> "Setting":
        """The same with another value on one axis."""
        if name == "depth, replicas, inputs":
            depth, replicas, inputs = value  # pyright: ignore[reportGeneralTypeIssues]
            circuit = replace(self.circuit, depth=depth, replicas=replicas, inputs=inputs, sums=min(inputs, 20))
            return replace(self, circuit=circuit)
        if name in {field.name for field in fields(spn.Config)}:
            return replace(self, circuit=replace(self.circuit, **{name: value}))
        return replace(self, em=replace(self.em, **{name: value}))


AXES: dict[str, tuple] = {
    "axes": ("principal",),
    "depth, replicas, inputs": ((0, 1, 100), (1, 10, 20), (1, 100, 20), (2, 20, 20)),
    "step": (0.01, 0.02, 0.05),
    "decay": (0.0,),
    "batches": (4, 48),
    "min_variance": (1e-2, 1e-4, 1e-5, 1e-6),
    "leaf_prior": (0.03, 0.3),
    "sum_prior": (10.0,),
}
"""What is tried in place of the defaults, from which the search starts."""
COMPONENTS = {"diag": (1, 2, 5, 10, 20, 50, 100), "full": (1, 2, 5, 10, 20)}
RIDGES = (1e-6, 1e-3, 1e-2, 1e-1)
"""Added to scikit-learn's variances; the least is also the least of rayad's bounds."""
SPFLOW = {"inputs": 10, "depth": 1, "replicas": 10}
"""A smaller circuit than rayad's default, which takes SPFlow hours."""


def main(options: Options) -> None:
    """Fit, print, and write the results."""
    torch.set_num_threads(1)
    tables = options.detectors if options.run else ("breast_cancer", "digits")
    facts, found, searches = machine(1, options.seeds), [], {}
    for table in tables:
        seeds = loaded(table, options)
        setting, searches[table] = search(seeds[: options.search_seeds], options)
        for name, work in densities(setting, len(seeds[0].train), options).items():
            found.append({"table": table, "density": name} | over_seeds(work, seeds))
            show(found[-1])
        options.out.write_text(json.dumps(facts | {"densities": found, "searches": searches}, indent=2) + "\n")


def over_seeds(work: Callable[[Rows, int], tuple[float, float]], seeds: list[Rows]) -> dict[str, object]:
    """Mean and spread of the test bits, or why there are none."""
    try:
        validation, test = map(np.array, zip(*(work(rows, seed) for seed, rows in enumerate(seeds)), strict=True))
    except Exception as error:  # noqa: BLE001  a density that is missing or fails is a row of the table
        return {"reason": f"{type(error).__name__}: {error}"[:160]}
    row = {"test bits": test.mean(), "spread": test.std(), "validation bits": validation.mean()}
    return rounded({name: float(value) for name, value in row.items()})


def loaded(table: str, options: Options) -> list[Rows]:
    """The rows of every seed: a sixth for test, whatever the seed, a sixth for validation; latents by patient."""
    if options.run:
        values, patients, test = latents(options.run, table)
    else:
        values = getattr(datasets, f"load_{table}")().data.astype(np.float64)
        fixed = np.random.default_rng(0)
        values = fixed.permutation(values + fixed.random(values.shape) * (table == "digits"))
        test, values = np.split(values, [len(values) // 6])
        patients = np.arange(len(values))
    return [divided(values, patients, test, seed) for seed in range(options.seeds)]


def latents(run: Path, detector: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents of the training patches, their patients, and latents of the validation patches."""
    corpus = Corpus.open(str(run / "corpus"))
    model = load(str(run / "detectors" / detector)).model
    assert model is not None  # a detector with a density has an encoder

    def encoded(split: str) -> np.ndarray:
        patches = np.concatenate([corpus.read(shard) for shard, _ in corpus.shards(split)])
        parts = torch.from_numpy(patches.astype(np.float32) / 65535)[:, None].split(256)
        with torch.no_grad():
            return torch.cat([model.module.encode(part) for part in parts]).double().numpy()

    rows = corpus.index().sort_values(["shard", "row_in_shard"]).query("split == 'train'")
    return encoded("train"), rows["patient_id"].to_numpy(), encoded("validation")


def divided(values: np.ndarray, patients: np.ndarray, test: np.ndarray, seed: int) -> Rows:
    """A fifth of the patients (or rows) for validation; standardized by the training rows."""
    order = np.random.default_rng([1, seed]).permutation(np.unique(patients))
    held = np.isin(patients, order[: len(order) // 5])
    parts = values[~held], values[held], test
    mean, deviation = parts[0].mean(0), parts[0].std(0)
    if not deviation.all():
        raise ValueError(f"columns {np.flatnonzero(deviation == 0).tolist()} are constant; leave them out")
    return Rows(*(torch.from_numpy((part - mean) / deviation).float() for part in parts))


def bits(log_prob: Tensor, variables: int) -> float:
    """Bits a dimension."""
    return -float(log_prob.double().mean()) / (variables * math.log(2))


# rayad


def fit(setting: Setting, rows: Rows, seed: int) -> spn.SPN:
    """A learned circuit, at its best epoch."""
    circuit = replace(setting.circuit, seed=seed).build(rows.train.shape[1])
    em.fit(circuit, rows.train, rows.validation, replace(setting.em, seed=seed))
    return circuit


def measure(setting: Setting, rows: Rows, seed: int) -> tuple[float, float]:
    """Validation and test bits."""
    circuit = fit(setting, rows, seed)
    return tuple(bits(circuit.log_prob(z), z.shape[1]) for z in (rows.validation, rows.test))  # pyright: ignore


def search(seeds: list[Rows], options: Options) -> tuple[Setting, list[dict[str, object]]]:
    """The setting that is best on validation rows, and all that were tried, one axis after the other."""

    def validation(setting: Setting) -> float:
        return float(np.mean([measure(setting, rows, seed)[0] for seed, rows in enumerate(seeds)]))

    best = Setting(spn.Config(), em.EM(epochs=options.epochs))
    lowest = validation(best)
    tried: list[dict[str, object]] = [{"defaults": "", "validation bits": lowest}]
    show(tried[0])
    axes = [(name, value) for name, values in AXES.items() for value in values]
    for name, value in axes * options.rounds:
        candidate = best.change(name, value)
        try:
            found = validation(candidate)
        except RayadError as error:
            tried.append({name: value, "reason": str(error)})
            continue
        tried.append(rounded({name: value, "validation bits": found}))
        show(tried[-1])
        if found < lowest:
            best, lowest = candidate, found
    return best, [*tried, {"chosen": repr(best)}]


def densities(setting: Setting, rows: int, options: Options) -> dict[str, Callable[[Rows, int], tuple[float, float]]]:
    """Name -> what measures it: validation and test bits."""
    default = Setting(spn.Config(), em.EM(epochs=options.epochs))
    paper = Setting(spn.Config(), em.PAPER)
    settings = {
        "rayad, defaults": default,
        "rayad, principal axes": default.change("axes", "principal"),
        "rayad, full batch": replace(default, em=em.full_batch(options.epochs)),
        "rayad, chosen": setting,
        "rayad, the paper's EM": paper,
        "rayad, the paper's EM, step 0.01": paper.change("step", 1e-2),
    }
    found: dict[str, Callable] = {"standard normal": standard_normal}
    found |= {name: lambda r, seed, one=one: measure(one, r, seed) for name, one in settings.items()}
    found |= {f"GaussianMixture, {kind}": lambda r, seed, kind=kind: mixture(kind, r, seed) for kind in COMPONENTS}
    if options.spflow_epochs:
        for way in ("EM", "gradient"):
            found[f"SPFlow Einet, {way}"] = lambda r, seed, way=way: spflow(way, r, seed, options.spflow_epochs)
    return found


# The others


def standard_normal(rows: Rows, seed: int) -> tuple[float, float]:
    """What standardization alone amounts to."""
    log_prob = torch.distributions.Normal(0, 1).log_prob
    one, other = (bits(log_prob(z).sum(1), z.shape[1]) for z in (rows.validation, rows.test))
    return one, other


def mixture(kind: str, rows: Rows, seed: int) -> tuple[float, float]:
    """scikit-learn's mixture, with number of components and ridge from validation, where it can be fitted."""
    found = []
    for k in COMPONENTS[kind]:
        for ridge in RIDGES:
            model = GaussianMixture(k, covariance_type=kind, reg_covar=ridge, random_state=seed)
            try:
                model.fit(rows.train.numpy())
            except ValueError:  # a component of one row, whose covariance the ridge does not save
                continue
            both = (torch.from_numpy(model.score_samples(z.numpy())) for z in (rows.validation, rows.test))
            found.append(tuple(bits(log_prob, rows.train.shape[1]) for log_prob in both))
    return min(found)


def spflow(way: str, rows: Rows, seed: int, epochs: int) -> tuple[float, float]:
    """SPFlow's Einet, at its best epoch: EM on all rows, or Adam on batches of 64. It starts from training rows and
    variances of 1, which is better than its own start, with deviations down to zero. What ends in NaN ends early."""
    from spflow.learn.expectation_maximization import expectation_maximization  # pyright: ignore
    from spflow.modules.leaves.normal import Normal  # pyright: ignore
    from spflow.zoo.einet import Einet  # pyright: ignore

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  SPFlow draws from it
    variables, replicas = rows.train.shape[1], SPFLOW["replicas"]
    shape = variables, SPFLOW["inputs"], replicas
    loc = rows.train[torch.randint(len(rows.train), (math.prod(shape[1:]),))].T.reshape(shape)
    leaves = Normal(list(range(variables)), loc=loc.contiguous(), scale=torch.ones(shape))
    model = Einet(
        [leaves], num_leaves=SPFLOW["inputs"], depth=SPFLOW["depth"], num_repetitions=replicas, layer_type="einsum"
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    best = (math.inf, math.inf)
    for _ in range(epochs):
        try:
            if way == "EM":
                expectation_maximization(model, rows.train, max_steps=1, bias_correction=False)
            else:
                for batch in rows.train[torch.randperm(len(rows.train))].split(64):
                    optimizer.zero_grad()
                    (-model.log_likelihood(batch).mean()).backward()
                    optimizer.step()
            with torch.no_grad():
                one, other = (bits(model.log_likelihood(z).flatten(), variables) for z in (rows.validation, rows.test))
        except ValueError:  # of torch's distributions, for parameters that are NaN
            break
        best = min(best, (one, other))
    if best[0] == math.inf:
        raise ValueError("parameters are NaN after the first step")
    return best


if __name__ == "__main__":
    main(tyro.cli(Options))
