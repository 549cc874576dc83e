"""Random sum-product networks with Gaussian leaves: exact densities of many variables.

Peharz et al. 2020a, "Random sum-product networks" (the structure); Peharz et al. 2020b, "Einsum networks" (sums
over outer products, learning by expectation-maximization). C roots share R replicas of a random region graph of
depth D, with I input distributions in a leaf region and S sums in the regions between.

    S_c = sum_r sum_ij W_crij a_ri b_rj,      log p(z) = log sum_c pi_c S_c

One pass upwards gives log p. One pass downwards gives every node's expected visits d log p / d log N, from which
the statistics of expectation-maximization are matrix products; no graph of derivatives is recorded.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from rayad.arrays import Latents, Scores
from rayad.density import kernel
from rayad.density.leaves import Features, GaussianLeaves, Moments, Standardization
from rayad.density.region_graph import random_scopes
from rayad.density.sums import MIN_WEIGHT, SumLayer
from rayad.errors import OptionError

NEGLIGIBLE = -60.0
"""Logarithm, relative to the largest value of its region, below which a leaf's value is zero: sums do not notice,
and denormal numbers are slow (9 times in the statistics of outliers)."""
MAX_ROWS = 256
"""Rows that go through the circuit together; 128 to 512 are best for the cache."""
BUDGET = 1 << 24
"""Numbers that a circuit keeps at a time; a deep circuit takes fewer rows."""
INERTIA = 1e-12
"""Expected visits of a batch at which a node goes half of its step: one that no row came near does not move."""
MIN_MIN_VARIANCE = 1e-6
"""The least bound of a variance; below it float32 has no digits left for the quadratic form of a leaf."""


@dataclass(frozen=True)
class Config:
    """Sizes of a circuit. The defaults are those of Dietrichstein et al. 2022 (C=1, I=45, D=1, R=50)."""

    roots: int = 1
    """C: distributions at the top, which share everything below; without labels more than one adds nothing."""
    inputs: int = 45
    """I: distributions of a leaf region."""
    sums: int = 45
    """S: sums of a region between leaves and roots; of no effect below depth 2."""
    depth: int = 1
    """D: how often the variables are cut in two; 2**depth may not exceed their number."""
    replicas: int = 50
    """R: random region graphs."""
    seed: int = 0
    """Of the region graphs."""
    min_variance: float = 1e-3
    """Of a leaf, relative to its variable's variance in training."""
    sum_prior: float = 1.0
    """Training rows, spread evenly over the weights of a level, that are thought to have come before (Laplace)."""
    leaf_prior: float = 0.0
    """Training rows of the variables' own distribution that every leaf is thought to have seen before."""

    def __post_init__(self) -> None:
        for name in ("roots", "inputs", "sums", "replicas"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} of a circuit must be at least 1, not {getattr(self, name)}")
        for name in ("sum_prior", "leaf_prior"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise OptionError(f"{name} of a circuit must be at least 0 rows, not {getattr(self, name)}")
        if not MIN_MIN_VARIANCE <= self.min_variance <= 1:
            raise OptionError(f"min_variance must be between {MIN_MIN_VARIANCE} and 1, not {self.min_variance}")

    def build(self, variables: int) -> "SPN":
        """An untrained circuit over this many variables.

        Raises:
            OptionError: too deep for the variables.
        """
        return SPN(self, variables)


@dataclass(frozen=True)
class Statistics:
    """What rows say about a circuit with its current parameters; a value that adds over batches and workers."""

    rows: Float[Tensor, ""]
    log_likelihood: Float[Tensor, ""]
    """Sum of log p over the rows, in nats."""
    leaves: Moments
    sums: tuple[Tensor, ...]
    """Expected visits of every weight, from the bottom up."""
    roots: Float[Tensor, " c"]

    def tensors(self) -> list[Tensor]:
        """All of it, for a sum over workers in place."""
        return [self.rows, self.log_likelihood, *self.leaves.tensors(), *self.sums, self.roots]

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(
            self.rows + other.rows,
            self.log_likelihood + other.log_likelihood,
            self.leaves + other.leaves,
            tuple(mine + others for mine, others in zip(self.sums, other.sums, strict=True)),
            self.roots + other.roots,
        )


class Sums(NamedTuple):
    """What the passes over rows add up."""

    log_likelihood: Float[Tensor, ""]
    """Of the standardized rows."""
    roots: Float[Tensor, " c"]
    mass: Float[Tensor, "l i 1"]
    """Expected visits of every input distribution."""
    raw: Float[Tensor, "l i f"]
    """Sums of visits times features."""
    visits: list[Tensor]
    """Of every weight, but for a factor: the weight."""

    def plus(self, other: "Sums") -> "Sums":
        """The sums over the rows of both."""
        visits = [mine + others for mine, others in zip(self.visits, other.visits, strict=True)]
        log_likelihood, roots = self.log_likelihood + other.log_likelihood, self.roots + other.roots
        return Sums(log_likelihood, roots, self.mass + other.mass, self.raw + other.raw, visits)


class Level(NamedTuple):
    """All regions of one depth, for some rows."""

    values: Float[Tensor, "l i n"]
    """Densities, divided by the largest of their region."""
    peak: Float[Tensor, "l 1 n"]
    """Logarithm of the largest."""


class Upward(NamedTuple):
    """What the pass upwards leaves for the pass downwards."""

    features: Features
    levels: list[Level]
    """From the leaves up, without the roots."""
    outs: list[Tensor]
    """What each sum layer made of the level below it, as scaled there."""
    log_roots: Float[Tensor, "r c n"]
    """log of pi_c times each replica's part of S_c."""
    log_prob: Scores
    """Of the standardized rows."""


class SPN(nn.Module):
    """A random sum-product network; missing values (NaN) are integrated out."""

    rows: Tensor

    def __init__(self, config: Config, variables: int) -> None:
        super().__init__()
        self.config = config
        scopes = random_scopes(variables, config.depth, config.replicas, config.seed)
        self.standardization = Standardization(variables)
        self.leaves = GaussianLeaves(scopes, variables, config.inputs, config.min_variance)
        self.inner = nn.ModuleList()  # from the bottom up
        nodes = config.inputs
        for depth in range(config.depth - 1, 0, -1):
            self.inner.append(SumLayer(config.replicas * 2**depth, config.sums, nodes, nodes, pooled=False))
            nodes = config.sums
        right = nodes if config.depth else 1
        self.root = SumLayer(config.replicas, config.roots, nodes, right, pooled=True)
        self.mixing = nn.Parameter(torch.full((config.roots,), 1 / config.roots), requires_grad=False)
        self.register_buffer("rows", torch.tensor(1.0))
        """Of training, which the priors are measured by."""

    @torch.no_grad()
    def start(self, z: Latents, seed: int) -> None:
        """Take scale and leaves from these rows (k-means in every region) and draw the weights of the sums.

        Raises:
            TrainingError: no rows, or an infinite value.
            OptionError: another number of variables than the circuit was built for.
        """
        generator = torch.Generator().manual_seed(seed)
        self.standardization.start(z)
        self.rows.fill_(len(z))
        self.leaves.start(self.standardization(z), generator)
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
        parts = [self.upward(part, missing).log_prob for part in x.split(self._rows_at_once())]
        return torch.cat(parts) - self.standardization.log_volume(x)

    @torch.no_grad()
    def statistics(self, z: Latents) -> Statistics:
        """E-step: what these rows say about every parameter; there may be no rows.

        Raises:
            OptionError: another number of variables than the circuit was built for.
        """
        x = self.standardization(z)
        missing = bool(x.isnan().any())
        packed = None if missing else kernel.packed(self, learns=True)
        sums = packed.statistics(x) if packed else self._sums(x, missing)
        return Statistics(
            x.new_full((), len(x), dtype=torch.float64),
            sums.log_likelihood - self.standardization.log_volume(x).sum(dtype=torch.float64),
            self.leaves.moments(sums.mass, sums.raw),
            tuple(layer.weights * visit for layer, visit in zip(self.layers(), sums.visits, strict=True)),
            sums.roots,
        )

    def _sums(self, x: Latents, missing: bool) -> Sums:
        """The passes of `statistics`, in torch."""
        blocks, (regions, inputs, width) = 3 if missing else 2, self.leaves.mean.shape
        mass, raw = x.new_zeros(regions, inputs, 1), x.new_zeros(regions, inputs, blocks * width)
        visits = [torch.zeros_like(layer.weights) for layer in self.layers()]
        roots, log_likelihood = torch.zeros_like(self.mixing), x.new_zeros((), dtype=torch.float64)
        for part in x.split(self._rows_at_once()):
            up = self.upward(part, missing)
            log_likelihood += up.log_prob.sum(dtype=torch.float64)
            shares = F.threshold(up.log_roots - up.log_prob, NEGLIGIBLE, -torch.inf, inplace=True).exp_()  # r c n
            roots += shares.sum((0, 2))
            flow = self.downward(up, shares, visits)
            mass += flow.sum(2, keepdim=True)
            raw.baddbmm_(flow, up.features.mT)
        return Sums(log_likelihood, roots, mass, raw, visits)

    @torch.no_grad()
    def update(self, statistics: Statistics, step: float) -> None:
        """M-step: move all parameters towards what the rows say, in the space of expectation parameters.

        With all training rows and step 1 this is expectation-maximization; no step in (0, 1] lowers their likelihood
        (with priors: the sum of it and `log_prior`).
        """
        share = float(statistics.rows / self.rows)
        self.leaves.update(statistics.leaves, step, self.config.leaf_prior * share, INERTIA)
        for layer, visits in zip(self.layers(), statistics.sums, strict=True):
            layer.update(visits, step, self.config.sum_prior * share, INERTIA)
        if statistics.rows > 0:
            self.mixing.lerp_(statistics.roots / statistics.roots.sum(), step).clamp_min_(MIN_WEIGHT)

    @torch.no_grad()
    def log_prior(self) -> float:
        """What the priors add to the log likelihood of the training rows, in nats, but for a constant."""
        sums = sum(float(layer.log_prior(self.config.sum_prior)) for layer in self.layers())
        return sums + float(self.leaves.log_prior(self.config.leaf_prior))

    def upward(self, x: Latents, missing: bool) -> Upward:
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
        return Upward(features, levels, outs, log_roots, log_roots.flatten(0, 1).logsumexp(0))

    def downward(self, up: Upward, shares: Float[Tensor, "r c n"], visits: list[Tensor]) -> Float[Tensor, "l i n"]:
        """Expected visits d log p / d log N of every leaf in every row.

        Args:
            shares: expected visits of the roots in each replica.
            visits: added to, those of every weight over the rows, but for a factor: the weight.
        """
        flow = shares
        for layer, level, out, visit in reversed(list(zip(self.layers(), up.levels, up.outs, visits, strict=True))):
            below = Level(torch.empty_like(level.values), level.peak)
            (left, right), (flow_left, flow_right) = self.halves(level), self.halves(below)
            flows = flow_left.values, flow_right.values
            layer.backward(flow / out, (left.values, right.values), flows, visit)
            flow = below.values
        return flow

    def halves(self, level: Level) -> tuple[Level, Level]:
        """The left and right halves of a level; without depth, the right one is nothing: 1."""
        if self.config.depth == 0:
            return level, Level(torch.ones_like(level.peak), torch.zeros_like(level.peak))
        (left, right), (left_peak, right_peak) = level.values.chunk(2), level.peak.chunk(2)
        return Level(left, left_peak), Level(right, right_peak)

    def layers(self) -> list[SumLayer]:
        """All sums, from the bottom up; the roots come last."""
        return [*cast(Iterable[SumLayer], self.inner), self.root]

    def _rows_at_once(self) -> int:
        regions, inputs, width = self.leaves.mean.shape
        numbers = regions * (4 * inputs + 2 * width) + 4 * sum(
            layer.weights.shape[0] * layer.weights.shape[1] for layer in self.layers()
        )
        return max(16, min(MAX_ROWS, BUDGET // numbers))
