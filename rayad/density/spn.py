"""Random sum-product networks: exact densities of many variables, numbers and codes.

Peharz et al. 2020a, "Random sum-product networks" (the structure); Peharz et al. 2020b, "Einsum networks" (sums
over outer products, learning by expectation-maximization). C roots share R replicas of a random region graph of
depth D, with I input distributions in a leaf region and S sums in the regions between.

    S_c = sum_r sum_ij W_crij a_ri b_rj,      log p(z) = log sum_c pi_c S_c

One pass upwards gives log p. One pass downwards gives every node's expected visits d log p / d log N, from which
the statistics of expectation-maximization are matrix products; no graph of derivatives is recorded.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rayad.density import kernel
from rayad.density.categorical import CategoricalLeaves, Codes, Counts
from rayad.density.leaves import (
    MAX_VARIANCE,
    START_ROWS,
    Features,
    GaussianLeaves,
    Moments,
    PrincipalAxes,
    Standardization,
)
from rayad.density.mixed import MixedFeatures, MixedLeaves, MixedMoments
from rayad.density.region_graph import Scopes, random_scopes
from rayad.density.rows import chosen, held
from rayad.density.sums import MIN_WEIGHT, DenseSums, MonarchSums, SumLayer
from rayad.errors import OptionError
from rayad.fit import ALONE, Sync
from rayad.options import Seed, Share, Size, Weight, Within
from rayad.tensors import Latents, Scores

Labels = Int64[Tensor, " n"]
"""The root of every row, -1 where it is not known."""
NEGLIGIBLE = -60.0
"""Logarithm, relative to the largest value of its region, below which a leaf's value is zero: sums do not notice,
and denormal numbers are slow (9 times in the statistics of outliers)."""
MAX_ROWS = 256
"""Rows that go through the circuit together; 128 to 512 are best for the cache."""
ROWS_A_SUM = 1 << 15
"""Rows whose statistics are added one after the other; sums of sums keep their digits however many rows there are."""
BUDGET = 1 << 24
"""Numbers that a circuit keeps at a time; a deep circuit takes fewer rows."""
INERTIA = 1e-12
"""Expected visits of a batch at which a node goes half of its step: one that no row came near does not move."""
MIN_MIN_VARIANCE = 1e-6
"""The least bound of a variance; below it float32 has no digits left for the quadratic form of a leaf."""


@dataclass(frozen=True)
class Config:
    """Sizes of a circuit. The defaults are those of Dietrichstein et al. 2022 (C=1, I=45, D=1, R=50)."""

    roots: Size = 1
    """C: distributions at the top, which share everything below: one a class; without labels more add nothing."""
    inputs: Size = 45
    """I: distributions of a leaf region."""
    sums: Size = 45
    """S: sums of a region between leaves and roots; of no effect below depth 2."""
    blocks: Annotated[int, Within(0, 65_536)] = 0
    """Blocks of sums between leaves and roots whose weights share a factor (Monarch matrices): fewer cost less; 0 for
    dense weights. Of no effect below depth 2."""
    depth: Annotated[int, Within(0, 16)] = 1
    """D: how often the variables are cut in two; 2**depth may not exceed their number."""
    replicas: Size = 50
    """R: random region graphs."""
    first: Annotated[int, Within(0, 65_536)] = 0
    """Variables, the first ones, that the first cut parts from the others, such as those of one of two images; 0: it
    cuts at random."""
    seed: Seed = 0
    """Random seed of the region graphs."""
    min_variance: Share = 1e-3
    """Smallest variance of a leaf, relative to its variable's variance in training."""
    sum_prior: Weight = 1.0
    """Pseudo-count for the weights of a level, in training rows spread evenly over them (Laplace)."""
    leaf_prior: Weight = 0.0
    """Pseudo-count of every Gaussian leaf, in training rows of the variables' own distribution."""
    state_prior: Weight = 1.0
    """Pseudo-count of every categorical leaf, in training rows spread evenly over its codes (Laplace)."""
    states: Annotated[tuple[int, ...], Within(0, 65_536)] = ()
    """Codes of every variable, 0 for a number; one entry serves all variables; none: all are numbers."""
    axes: Literal["variables", "principal"] = "variables"
    """Axes that the leaves are over: the variables, or the principal axes of the training rows, where these
    correlate."""

    def __post_init__(self) -> None:
        if self.axes not in ("variables", "principal"):
            raise OptionError(f"axes of a circuit must be variables or principal, not {self.axes!r}")
        if self.axes == "principal" and any(self.states):
            raise OptionError("principal axes are for numbers; this circuit has codes")
        for name in ("roots", "inputs", "sums", "replicas"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} of a circuit must be at least 1, not {getattr(self, name)}")
        if self.blocks < 0 or (self.blocks and self.sums % self.blocks):
            raise OptionError(
                f"blocks of a circuit must divide its sums, which are {self.sums}, or be 0, not {self.blocks}"
            )
        for name in ("sum_prior", "leaf_prior", "state_prior"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise OptionError(f"{name} of a circuit must be at least 0 rows, not {getattr(self, name)}")
        if any(states < 0 for states in self.states):
            raise OptionError(f"states of a variable must be at least 1, or 0 for a number, not {min(self.states)}")
        if not MIN_MIN_VARIANCE <= self.min_variance <= 1:
            raise OptionError(f"min_variance must be between {MIN_MIN_VARIANCE} and 1, not {self.min_variance}")

    def build(self, variables: int) -> "SPN":
        """An untrained circuit over this many variables.

        Raises:
            OptionError: too deep for the variables, or states of another number of them.
        """
        return SPN(self, variables)

    def states_of(self, variables: int) -> tuple[int, ...]:
        """States of each of so many variables."""
        if len(self.states) not in (0, 1, variables):
            raise OptionError(f"states are given for {len(self.states)} variables, but there are {variables}")
        return (self.states or (0,)) * (1 if len(self.states) == variables else variables)


PRESETS = {"paper": ("roots=1", "inputs=45", "depth=1", "replicas=50")}
"""Dietrichstein et al. 2022, with `em.PAPER`; these are the defaults too."""


@dataclass(frozen=True)
class CircuitStatistics:
    """What rows say about a circuit with its current parameters; a value that adds over batches and workers."""

    rows: Float[Tensor, ""]
    log_likelihood: Float[Tensor, ""]
    """Sum of log p over the rows, in nats."""
    leaves: Moments | Counts | MixedMoments
    sums: tuple[Tensor, ...]
    """Expected visits of every weight, from the bottom up."""
    roots: Float[Tensor, " c"]

    @property
    def visits(self) -> Float[Tensor, "l i"]:
        """Of every input distribution."""
        return self.leaves.visits()

    def tensors(self) -> list[Tensor]:
        """All of it, for a sum over workers in place."""
        return [self.rows, self.log_likelihood, *self.leaves.tensors(), *self.sums, self.roots]

    def __add__(self, other: "CircuitStatistics") -> "CircuitStatistics":
        return CircuitStatistics(
            self.rows + other.rows,
            self.log_likelihood + other.log_likelihood,
            cast(Any, self.leaves) + other.leaves,
            tuple(visits + other_visits for visits, other_visits in zip(self.sums, other.sums, strict=True)),
            self.roots + other.roots,
        )


class Sums(NamedTuple):
    """What the passes over rows add up."""

    log_likelihood: Float[Tensor, ""]
    """Of the standardized rows."""
    roots: Float[Tensor, " c"]
    leaves: Moments | Counts | MixedMoments
    visits: list[Tensor]
    """Of every weight, but for a factor: the weight."""


class Level(NamedTuple):
    """All regions of one depth, for some rows."""

    values: Float[Tensor, "l i n"]
    """Densities, divided by the largest of their region."""
    peak: Float[Tensor, "l 1 n"]
    """Logarithm of the largest."""


class Upward(NamedTuple):
    """What the pass upwards leaves for the pass downwards."""

    features: Features | Codes | MixedFeatures
    levels: list[Level]
    """From the leaves up, without the roots."""
    outs: list[Tensor]
    """What each sum layer made of the level below it, as scaled there."""
    log_roots: Float[Tensor, "r c n"]
    """log of pi_c times each replica's part of S_c."""
    log_prob: Scores
    """Of the standardized rows, and their labels where these are known."""


class SPN(nn.Module):
    """A random sum-product network; missing values (NaN) are integrated out."""

    rows: Tensor

    def __init__(self, config: Config, variables: int) -> None:
        super().__init__()
        self.config = config
        scopes = random_scopes(variables, config.depth, config.replicas, config.seed, config.first)
        states = config.states_of(variables)
        principal = config.axes == "principal"
        self.standardization = PrincipalAxes(variables) if principal else Standardization(variables, states)
        self.leaves = _leaves(config, states, scopes)
        self.inner = nn.ModuleList()  # from the bottom up
        nodes = config.inputs
        for depth in range(config.depth - 1, 0, -1):
            self.inner.append(_inner_sums(config, config.replicas * 2**depth, nodes))
            nodes = config.sums
        right = nodes if config.depth else 1
        self.root = DenseSums(config.replicas, config.roots, nodes, right, pooled=True)
        self.mixing = nn.Parameter(torch.full((config.roots,), 1 / config.roots), requires_grad=False)
        self._pass_upward = SPN.upward
        self.register_buffer("rows", torch.tensor(1.0))
        """Of training, which the priors are measured by."""

    @torch.no_grad()
    def start(self, z: Latents, seed: int, sync: Sync = ALONE) -> None:
        """Take scale and leaves from these rows (k-means in every region) and draw the weights of the sums.

        Args:
            z: rows; of several workers, the share of this one.

        Raises:
            TrainingError: no rows, or an infinite value.
            OptionError: another number of variables than the circuit was built for.
        """
        generator = torch.Generator().manual_seed(seed)
        self.standardization.start(z, sync)
        self.rows.fill_(held(z, sync).total)
        self.leaves.start(self.standardization(z), generator, sync)
        for layer in self.layers():
            layer.start(generator)
        self.mixing.fill_(1 / len(self.mixing))

    @torch.no_grad()
    def log_prob(self, z: Latents) -> Scores:
        """log p of every row, in nats; where values are missing (NaN), of the others (the marginal).

        Values further than 1e12 standard deviations from the training mean count as that far away.

        Raises:
            OptionError: another number of variables than the circuit was built for.
        """
        x = self.standardization(z)
        missing = bool(x.isnan().any())
        packed = None if missing else kernel.packed(self)
        if packed:
            return packed.log_prob(x) - self.standardization.log_volume(x)
        parts = [self._pass_upward(self, part, missing).log_prob for part in x.split(self._rows_at_once())]
        return torch.cat(parts) - self.standardization.log_volume(x)

    @torch.no_grad()
    def statistics(self, z: Latents, labels: Labels | None = None) -> CircuitStatistics:
        """E-step: what these rows say about every parameter; there may be no rows.

        Memory does not depend on the number of rows but for a standardized copy of them. Rows that do not fit in
        memory come in blocks, whose statistics add.

        Args:
            labels: the root that a row is known to come from; it visits no other. Likelihoods are those of the row
                and its label.

        Raises:
            OptionError: another number of variables than the circuit was built for, or a label that is no root.
        """
        self._check(labels)
        x = self.standardization(z)
        return reduce(CircuitStatistics.__add__, (self._statistics(*part) for part in _blocks(x, labels, ROWS_A_SUM)))

    def _statistics(self, x: Latents, labels: Labels | None) -> CircuitStatistics:
        """Those of standardized rows, all at once."""
        missing = bool(x.isnan().any())
        packed = None if missing or labels is not None else kernel.packed(self)
        sums = Sums(*packed.statistics(x)) if packed else self._sums(x, labels, missing)
        return CircuitStatistics(
            x.new_full((), len(x), dtype=torch.float64),
            sums.log_likelihood - self.standardization.log_volume(x).sum(dtype=torch.float64),
            sums.leaves,
            tuple(visit.mul_(table) for table, visit in zip(self.tables(), sums.visits, strict=True)),
            sums.roots,
        )

    def _sums(self, x: Latents, labels: Labels | None, missing: bool) -> Sums:
        """The passes of `statistics`, in torch."""
        leaves: Any = self.leaves.tally(missing)
        visits = [torch.zeros_like(table) for table in self.tables()]
        roots, log_likelihood = torch.zeros_like(self.mixing), x.new_zeros((), dtype=torch.float64)
        for part, block_labels in _blocks(x, labels, self._rows_at_once()):
            upward = self._pass_upward(self, part, missing, block_labels)
            log_likelihood += upward.log_prob.sum(dtype=torch.float64)
            shares = F.threshold(
                upward.log_roots - upward.log_prob, NEGLIGIBLE, -torch.inf, inplace=True
            ).exp_()  # r c n
            roots += shares.sum((0, 2))
            self.leaves.add_(leaves, self.downward(upward, shares, visits), cast(Any, upward.features))
        return Sums(log_likelihood, roots, self.leaves.finish(leaves), visits)

    @torch.no_grad()
    def update(self, statistics: CircuitStatistics, step: float) -> None:
        """M-step: move all parameters towards what the rows say, in the space of expectation parameters.

        With all training rows and step 1 this is expectation-maximization; no step in (0, 1] lowers their likelihood
        (with priors: the sum of it and `log_prior`).
        """
        share = float(statistics.rows / self.rows)
        if not kernel.update(self.leaves, statistics.leaves, step, self._leaf_prior(share), INERTIA):
            self.leaves.update(cast(Any, statistics.leaves), step, self._leaf_prior(share), INERTIA)
        for layer, visits in zip(self.layers(), self._by_layer(statistics.sums), strict=True):
            prior = self.config.sum_prior * share
            if not kernel.update_sums(layer, visits, step, prior, INERTIA):
                layer.update(visits, step, prior, INERTIA)
        if statistics.rows > 0:
            self.mixing.lerp_(statistics.roots / statistics.roots.sum(), step).clamp_min_(MIN_WEIGHT)

    @torch.no_grad()
    def log_prior(self) -> float:
        """What the priors add to the log likelihood of the training rows, in nats, but for a constant."""
        sums = sum(layer.log_prior(self.config.sum_prior) for layer in self.layers())
        return sums + float(self.leaves.log_prior(self._leaf_prior(1)))

    @torch.no_grad()
    def revive(self, z: Latents, visits: Float[Tensor, "l i"], share: float, seed: int, sync: Sync = ALONE) -> int:
        """Start dead inputs anew, each around a row that the circuit explains poorly, with mean weights above it.

        Args:
            z: rows to choose from: among some drawn at random, a tenth, the least likely; of several workers, the
                share of this one.
            visits: of every input, in the last epoch.
            share: of the mean visits, below which an input is dead.
            seed: of the choice.

        Returns:
            How many there were.
        """
        dead = visits < share * visits.mean()
        number = int(dead.sum())
        if number == 0:
            return 0
        generator = torch.Generator().manual_seed(seed)
        drawn_rows = torch.randperm(held(z, sync).total, generator=generator)[:START_ROWS]
        candidates = chosen(z, drawn_rows, sync)
        worst = self.log_prob(candidates).argsort()[: max(1, len(candidates) // 10)]
        unlikely = worst[torch.randint(len(worst), (number,), generator=generator).to(z.device)]
        self.leaves.revive(dead, self.standardization(candidates[unlikely]))
        left, right = dead.chunk(2) if self.config.depth else (dead, dead.new_zeros(len(dead), 1))
        self.layers()[0].revive(left, right)
        return number

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Let torch.compile fuse the pass upwards where torch does the work; arguments are those of torch.compile."""
        self._pass_upward = torch.compile(SPN.upward, *args, **kwargs)

    def faults(self) -> Iterator[str]:
        """What no learning leaves behind: parameters that are none, or regions that do not follow from the seed."""
        config, variables = self.config, self.standardization.centre.numel()
        expected = random_scopes(variables, config.depth, config.replicas, config.seed, config.first)
        if not torch.equal(self.leaves.scopes, expected.to(self.leaves.scopes)):
            yield f"the regions are not those of seed {self.config.seed}"
        for number, layer in enumerate(self.layers()):
            tables = layer.tables()
            if not all((table >= 0).all() and ((table.sum(own) - 1).abs() <= 1e-4).all() for table, own in tables):
                yield f"the weights of sum layer {number} are no distributions"
        if (self.mixing < 0).any() or abs(float(self.mixing.sum()) - 1) > 1e-4:
            yield "the shares of the roots are no distribution"
        if isinstance(self.leaves, GaussianLeaves):
            variance = self.leaves.variance
            if float(variance.min()) < 0.99 * self.config.min_variance or float(variance.max()) > 1.01 * MAX_VARIANCE:
                yield f"variances of leaves are not between {self.config.min_variance} and {MAX_VARIANCE}"
        if not (self.standardization.scale > 0).all():
            yield "a variable's scale is not positive"
        if isinstance(self.standardization, PrincipalAxes):
            yield from self.standardization.faults()

    def upward(self, x: Latents, missing: bool, labels: Labels | None = None) -> Upward:
        """Densities of all nodes for a few standardized rows; `missing` says whether any value is NaN."""
        features = self.leaves.features(x, missing)
        densities = self.leaves(features)
        peak = densities.amax(1, keepdim=True)
        densities = F.threshold(densities.sub_(peak), NEGLIGIBLE, -torch.inf, inplace=True).exp_()
        levels, outs = [Level(densities, peak)], []
        for layer in self.inner:
            left, right = self.halves(levels[-1])
            outs.append(layer(left.values, right.values))
            top = outs[-1].amax(1, keepdim=True)
            levels.append(Level(outs[-1] / top, top.log().add_(left.peak).add_(right.peak)))
        left, right = self.halves(levels[-1])
        outs.append(self.root(left.values, right.values))
        log_roots = outs[-1].log().add_(left.peak).add_(right.peak).add_(self.mixing.log()[:, None])
        if labels is not None:
            roots = torch.arange(self.config.roots, device=labels.device)[:, None]
            log_roots.masked_fill_((labels >= 0) & (labels != roots), -torch.inf)
        return Upward(features, levels, outs, log_roots, log_roots.flatten(0, 1).logsumexp(0))

    def downward(self, upward: Upward, shares: Float[Tensor, "r c n"], visits: list[Tensor]) -> Float[Tensor, "l i n"]:
        """Expected visits d log p / d log N of every leaf in every row.

        Args:
            shares: expected visits of the roots in each replica.
            visits: added to, those of every weight over the rows, but for a factor: the weight.
        """
        flow = shares
        for layer, level, out, visit in reversed(
            list(zip(self.layers(), upward.levels, upward.outs, self._by_layer(visits), strict=True))
        ):
            child_flows = Level(torch.empty_like(level.values), level.peak)
            (left, right), (flow_left, flow_right) = self.halves(level), self.halves(child_flows)
            flows = flow_left.values, flow_right.values
            layer.backward(flow / out, (left.values, right.values), flows, visit)
            flow = child_flows.values
        return flow

    def along_axes(self) -> "SPN":
        """The same circuit over the coordinates that its leaves are over, `standardization(z)`; parameters are shared.

        Its densities are those of the coordinates. What asks for one variable after the other, where the leaves are
        over principal axes, asks it for one axis after the other.
        """
        circuit = copy.copy(self)
        circuit._modules = dict(self._modules)  # the table is copied, not the modules
        circuit.config = replace(self.config, axes="variables")
        circuit.standardization = Standardization(len(self.standardization.centre)).to(self.standardization.centre)
        return circuit

    def halves(self, level: Level) -> tuple[Level, Level]:
        """The left and right halves of a level; without depth, the right one is nothing: 1."""
        if self.config.depth == 0:
            return level, Level(torch.ones_like(level.peak), torch.zeros_like(level.peak))
        (left, right), (left_peak, right_peak) = level.values.chunk(2), level.peak.chunk(2)
        return Level(left, left_peak), Level(right, right_peak)

    def layers(self) -> list[SumLayer]:
        """All sums, from the bottom up; the roots come last."""
        return [*cast(Iterable[SumLayer], self.inner), self.root]

    def tables(self) -> list[Tensor]:
        """The learned weights of all sums, from the bottom up; a layer has one or two."""
        return [table for layer in self.layers() for table, _ in layer.tables()]

    def _by_layer(self, tables: Iterable[Tensor]) -> list[list[Tensor]]:
        """What is of all tables, layer by layer."""
        values = iter(tables)
        return [[next(values) for _ in layer.tables()] for layer in self.layers()]

    def _leaf_prior(self, share: float) -> Any:
        """The prior of the kind of leaves that the circuit has, for a share of the training rows."""
        gaussian, categorical = self.config.leaf_prior * share, self.config.state_prior * share
        if isinstance(self.leaves, MixedLeaves):
            return gaussian, categorical
        return gaussian if isinstance(self.leaves, GaussianLeaves) else categorical

    def _check(self, labels: Labels | None) -> None:
        wrong = [] if labels is None else ((labels < -1) | (labels >= self.config.roots)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise OptionError(
                f"the label of row {row} must be a root from 0 to {self.config.roots - 1}, or -1 where it is not"
                f" known, not {int(cast(Tensor, labels)[row])}"
            )

    def _rows_at_once(self) -> int:
        (regions, width), inputs = self.leaves.scopes.shape, self.config.inputs
        numbers = regions * (4 * inputs + 2 * width) + 4 * sum(layer.nodes for layer in self.layers())
        return max(16, min(MAX_ROWS, BUDGET // numbers))


def _inner_sums(config: Config, products: int, nodes: int) -> DenseSums | MonarchSums:
    """Sums between leaves and roots, over children of so many nodes."""
    if config.blocks:
        return MonarchSums(products, config.sums, nodes, nodes, config.blocks)
    return DenseSums(products, config.sums, nodes, nodes, pooled=False)


def _leaves(
    config: Config, states: tuple[int, ...], scopes: Scopes
) -> GaussianLeaves | CategoricalLeaves | MixedLeaves:
    """The leaves of variables with these states."""
    if all(states):
        return CategoricalLeaves(scopes, states, config.inputs)
    if any(states):
        return MixedLeaves(scopes, states, config.inputs, config.min_variance)
    return GaussianLeaves(scopes, len(states), config.inputs, config.min_variance)


def _blocks(x: Latents, labels: Labels | None, size: int) -> Iterator[tuple[Latents, Labels | None]]:
    """So many rows at a time, with their labels."""
    parts = x.split(size)
    yield from zip(parts, [None] * len(parts) if labels is None else labels.split(size), strict=True)
