"""Gaussian leaves: the distributions of numbers at the bottom of a circuit.

In leaf region l, input distribution i is a product of Gaussians with own mean and variance for each variable w of
the region. Its log density is affine in (z, z^2), so all of a region's inputs are one matrix product with the
natural parameters (mean / variance, -1 / (2 variance)) and a constant. That form loses digits where a variable has
an offset or a variance is tiny: variables are standardized first, and variances are bounded.

Letters: n rows, m variables, l leaf regions, i inputs, w variables of a region, f features.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from rayad.density.region_graph import Scopes, refuse_strange_scopes, spread
from rayad.density.rows import added, chosen, held
from rayad.errors import OptionError, TrainingError
from rayad.fit import ALONE, Sync
from rayad.tensors import Latents, Scores

MAX_VARIANCE = 10.0
"""Of a leaf, relative to its variable's; as in EiNet, Peharz et al. 2020b."""
LIMIT = 1e12
"""Standard deviations beyond which a value counts as this far away, so that its square is finite in float32."""
MIN_AXIS = 1e-6
"""Variance of a principal axis, at least, relative to the mean of all; collinear variables leave an axis without."""
START_ROWS = 4096
"""Of the training rows, at most, for the start of the leaves."""
START_ROUNDS = 10
"""Of k-means."""
START_BLOCK = 1 << 22
"""Distances that k-means holds at a time."""
START_PRIOR = 4.0
"""Rows of variance 1 that a cluster of the start is thought to hold beside its own."""

Features = Float[Tensor, "l f n"]
Parameters = Float[Tensor, "l i w"]


class Standardization(nn.Module):
    """Centres and scales every number and checks every code; a missing value (NaN) stays missing.

    Args:
        states: of every variable, 0 for a number; none if all are numbers.
    """

    centre: Tensor
    scale: Tensor
    states: Tensor

    def __init__(self, variables: int, states: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.register_buffer("states", torch.tensor(states or [0] * variables), persistent=False)
        self.coded = any(states)
        self.register_buffer("centre", torch.zeros(variables))
        self.register_buffer("scale", torch.ones(variables))

    @torch.no_grad()
    def start(self, z: Latents, sync: Sync = ALONE) -> None:
        """Take mean and standard deviation from these rows; a variable that is constant in them keeps its unit.

        Args:
            z: rows; of several workers, the share of this one.

        Raises:
            TrainingError: no rows, or an infinite value (names the row).
            OptionError: another number of variables than the density was built for, or a value that is not a code.
        """
        self._check(z)
        infinite = z.isinf().any(1).nonzero()
        if len(infinite):
            raise TrainingError(f"training latents must be finite or missing; row {int(infinite[0])} is not")
        z = z.double()
        rows, observed = torch.tensor(len(z), device=z.device), z.isnan().logical_not().sum(0)
        sync.sum_([rows, observed])
        if not int(rows):
            raise TrainingError("a density cannot start from no rows")
        centre = (added(z.nansum(0), sync) / observed).nan_to_num()
        scale = (added((z - centre).square().nansum(0), sync) / observed).sqrt().nan_to_num()
        coded = self.states > 0
        constant = (scale <= 1e-6 * centre.abs() + 1e-30) | coded
        self.centre.copy_(centre.masked_fill(coded, 0))
        self.scale.copy_(scale.masked_fill(constant, 1))

    def forward(self, z: Latents) -> Latents:
        """The standardized values, at most LIMIT from zero.

        Raises:
            OptionError: another number of variables than the density was built for, or a value that is not a code.
        """
        self._check(z)
        return ((z.to(self.centre) - self.centre) / self.scale).clamp(-LIMIT, LIMIT)

    def log_volume(self, x: Latents) -> Scores:
        """What a density of standardized values exceeds that of the values themselves by, in nats."""
        log_scale = self.scale.log()
        missing = x.isnan()
        if missing.any():
            return torch.where(missing, 0, log_scale).sum(1)
        return log_scale.sum().expand(len(x))

    def inverse(self, x: Latents) -> Latents:
        """The values of standardized rows."""
        return self.unscaled(x) + self.centre

    def unscaled(self, x: Latents) -> Latents:
        """Differences of standardized rows in the units of the values."""
        return x * self.scale

    def _check(self, z: Latents) -> None:
        if z.shape[1] != len(self.centre):
            raise OptionError(f"the density was built for {len(self.centre)} variables, not {z.shape[1]}")
        if not self.coded:
            return
        wrong = ((z != z.round()) | (z < 0) | (z >= self.states)) & ~z.isnan() & (self.states > 0)
        if wrong.any():
            row, variable = (int(place) for place in wrong.nonzero()[0])
            raise OptionError(
                f"variable {variable} of row {row} must be a whole number from 0 to {int(self.states[variable]) - 1}"
                f" or missing, not {float(z[row, variable]):g}"
            )


class PrincipalAxes(Standardization):
    """Turns rows to the principal axes of the training rows besides: coordinates without correlation, of variance 1.

    A product of univariate leaves cannot follow a correlation, and latents of an autoencoder have many. Turning
    changes no density but by a constant; a variable cannot be left out any more.
    """

    axes: Tensor
    spread: Tensor

    def __init__(self, variables: int) -> None:
        super().__init__(variables)
        self.register_buffer("axes", torch.eye(variables))
        self.register_buffer("spread", torch.ones(variables))

    @torch.no_grad()
    def start(self, z: Latents, sync: Sync = ALONE) -> None:
        super().start(z, sync)
        x = super().forward(z).double()
        self._refuse_missing(x)
        variances, axes = torch.linalg.eigh(added(x.T @ x, sync) / held(x, sync).total)
        self.axes.copy_(axes)
        self.spread.copy_(variances.clamp_min(MIN_AXIS).sqrt())

    def forward(self, z: Latents) -> Latents:
        """Coordinates along the axes, at most LIMIT from zero.

        Raises:
            OptionError: another number of variables than the density was built for, or a missing value.
        """
        x = super().forward(z)
        self._refuse_missing(x)
        turned = x.double() @ self.axes.double() / self.spread.double()  # narrow axes lose digits in float32
        return turned.clamp(-LIMIT, LIMIT).to(x)

    def log_volume(self, x: Latents) -> Scores:
        return super().log_volume(x) + self.spread.log().sum()

    def unscaled(self, x: Latents) -> Latents:
        return super().unscaled((x * self.spread) @ self.axes.T)

    def faults(self) -> Iterator[str]:
        """What no rows give: axes that are not perpendicular unit vectors, or an axis without spread."""
        if not torch.allclose(self.axes.T @ self.axes, torch.eye(len(self.axes)).to(self.axes), atol=1e-4):
            yield "the principal axes are not perpendicular unit vectors"
        if not (self.spread > 0).all():
            yield "a principal axis has no spread"

    def _refuse_missing(self, x: Latents) -> None:
        missing = x.isnan().any(1).nonzero()
        if len(missing):
            raise OptionError(
                f"a density along principal axes needs every value of a row; row {int(missing[0])} lacks one"
            )


@dataclass(frozen=True)
class Moments:
    """What rows say about each leaf: expected visits, and sums of deviations from the *current* mean.

    Moments about one shared reference add over batches and workers without loss of digits.
    """

    mass: Float[Tensor, "l i w"]
    first: Float[Tensor, "l i w"]
    second: Float[Tensor, "l i w"]

    def tensors(self) -> list[Tensor]:
        return [self.mass, self.first, self.second]

    def visits(self) -> Float[Tensor, "l i"]:
        """Expected visits of every input distribution."""
        return self.mass.amax(2)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.mass + other.mass, self.first + other.first, self.second + other.second)


@dataclass(frozen=True)
class Raw:
    """What rows have added up to so far."""

    mass: Float[Tensor, "l i 1"]
    """Expected visits of every input distribution."""
    raw: Float[Tensor, "l i f"]
    """Sums of visits times features."""


class GaussianLeaves(nn.Module):
    """All input distributions of a circuit; takes standardized rows, NaN where a value is missing."""

    scopes: Tensor

    def __init__(self, scopes: Scopes, variables: int, inputs: int, min_variance: float) -> None:
        super().__init__()
        regions, width = scopes.shape
        self.variables, self.inputs = variables, inputs
        self.min_variance = min_variance
        self.register_buffer("scopes", scopes)
        self.register_load_state_dict_pre_hook(refuse_strange_scopes)
        self.mean = nn.Parameter(torch.zeros(regions, inputs, width), requires_grad=False)
        self.variance = nn.Parameter(torch.ones(regions, inputs, width), requires_grad=False)

    def features(self, x: Latents, missing: bool) -> Features:
        """Each region's z and z^2, zero in unfilled places, and 1 for observed values if any are missing."""
        observed = ~x.isnan()
        table = x.new_zeros(3 if missing else 2, self.variables + 1, len(x))
        table[0, :-1] = x.masked_fill(~observed, 0).T if missing else x.T
        torch.square(table[0], out=table[1])
        if missing:
            table[2, :-1] = observed.T
        places = torch.cat([self.scopes + i * (self.variables + 1) for i in range(len(table))], dim=1)
        rows = table.flatten(0, 1).index_select(0, places.flatten())
        return rows.view(*places.shape, len(x))

    def forward(self, features: Features) -> Float[Tensor, "l i n"]:
        """Log density of every region's part of every row, in nats; missing values left out (marginals)."""
        slope, curvature, constant = self.natural()
        if features.shape[1] == 3 * self.scopes.shape[1]:
            return torch.bmm(torch.cat([slope, curvature, constant], dim=2), features)
        return torch.baddbmm(constant.sum(2, keepdim=True), torch.cat([slope, curvature], dim=2), features)

    def natural(self) -> tuple[Parameters, Parameters, Parameters]:
        """Coefficients of z and z^2, and the constant, of the log density of every variable of every input."""
        slope = self.mean / self.variance
        constant = (self.variance.log() + math.log(2 * math.pi)).addcmul_(slope, self.mean).mul_(-0.5) * self.filled
        return slope, -0.5 / self.variance, constant

    def tally(self, missing: bool) -> Raw:
        """Statistics of no rows."""
        regions, inputs, width = self.mean.shape
        zeros = partial(self.mean.new_zeros, dtype=torch.float64)
        return Raw(zeros(regions, inputs, 1), zeros(regions, inputs, (3 if missing else 2) * width))

    def add_(self, tally: Raw, flow: Float[Tensor, "l i n"], features: Features) -> None:
        """Add rows that visit the leaves so often."""
        visits = flow.double()  # variances are small differences of these sums
        tally.mass.add_(visits.sum(2, keepdim=True))
        tally.raw.baddbmm_(visits, features.double().mT)

    def finish(self, tally: Raw) -> Moments:
        """The statistics of the rows that were added."""
        return self.moments(tally.mass, tally.raw)

    def moments(self, mass: Float[Tensor, "l i 1"], raw: Float[Tensor, "l i f"]) -> Moments:
        """From expected visits, and sums of visits times features, to moments about the current means."""
        width = self.scopes.shape[1]
        first, second, observed = raw[..., :width], raw[..., width : 2 * width], raw[..., 2 * width :]
        visits = observed if observed.shape[2] else mass * self.filled
        deviation = first - visits * self.mean
        return Moments(visits, deviation, second - self.mean * (first + deviation))

    def update(self, moments: Moments, step: float, prior: float, inertia: float) -> None:
        """M-step: move the expectation parameters (mean, mean square) towards the rows' (algorithms: m' = m + s d,
        v' = v + s (second / mass - v - s d^2), d = first / mass, without the cancellation of squares).

        Args:
            step: the way to go, 1 for all of it.
            prior: rows of the variables' own distribution that every leaf is thought to have seen before.
            inertia: expected visits at which a leaf goes half of its step; from no visits it does not move.
        """
        mass = moments.mass + prior
        tiny = torch.finfo(torch.float32).tiny
        steps = step * mass / (mass + max(inertia, tiny))
        mass = mass.clamp_min(tiny)
        d = moments.first.sub(self.mean, alpha=prior).div_(mass)
        second = moments.second.add(self.mean.square().add_(1), alpha=prior).div_(mass)
        second.sub_(self.variance).addcmul_(steps * d, d, value=-1)
        self.variance.add_(steps.mul(second)).clamp_(self.min_variance, MAX_VARIANCE)
        self.mean.add_(steps.mul_(d))

    def log_prior(self, prior: float) -> Tensor:
        """What the prior adds to the objective of full-batch learning, in nats, but for a constant."""
        fit = self.variance.log() + (1 + self.mean.square()) / self.variance
        return (fit * self.filled).sum() * (-prior / 2)

    @property
    def filled(self) -> Bool[Tensor, "l 1 w"]:
        """The places that hold a variable; the others have no visits and no part in any density."""
        return (self.scopes < self.variables)[:, None]

    def factors(self, x: Latents) -> Float[Tensor, "l i w n"]:
        """Log density of every single variable, in nats; 0 where a value is missing and in unfilled places."""
        missing = spread(self.scopes, x.isnan())[:, None]  # l 1 w n
        deviation = spread(self.scopes, x.nan_to_num(0))[:, None] - self.mean[..., None]
        fit = deviation.square_().div_(self.variance[..., None]).add_(self.variance.log()[..., None])
        return fit.add_(math.log(2 * math.pi)).mul_(-0.5).masked_fill_(missing | ~self.filled[..., None], 0)

    def modes(self) -> tuple[Float[Tensor, "l i w"], Float[Tensor, "l i w"]]:
        """The most probable value of every leaf's variable, and its log density."""
        return self.mean, (self.variance.log() + math.log(2 * math.pi)) * -0.5

    def expectations(self) -> tuple[Float[Tensor, "l i w"], Float[Tensor, "l i w"]]:
        """Mean and variance of every leaf's variable."""
        return self.mean, self.variance

    def draw(
        self, region: Int64[Tensor, "n k"], node: Int64[Tensor, "n k"], generator: torch.Generator
    ) -> Float[Tensor, "n k w"]:
        """A random value of every variable of these leaves."""
        mean, variance = self.mean[region, node], self.variance[region, node]
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
        return noise.mul_(variance.sqrt()).add_(mean)

    def revive(self, dead: Bool[Tensor, "l i"], x: Latents) -> None:
        """Start these inputs anew: around a row of their own, with the variance of all rows.

        Args:
            x: a row for each of them.
        """
        region, node = dead.nonzero().T
        values = torch.cat([x.nan_to_num(0), x.new_zeros(len(x), 1)], dim=1)
        self.mean[region, node] = values.gather(1, self.scopes[region])
        self.variance[region, node] = 1

    def start(self, x: Latents, generator: torch.Generator, sync: Sync = ALONE) -> None:
        """k-means in every region, from rows drawn at random; each input takes the moments of its cluster."""
        drawn_rows = torch.randperm(held(x, sync).total, generator=generator)[:START_ROWS]
        rows = chosen(x, drawn_rows, sync).nan_to_num(0)
        table = torch.cat([rows.T, rows.new_zeros(1, len(rows))])
        regions, inputs, _ = self.mean.shape
        size = max(1, START_BLOCK // (inputs * len(rows)))
        for part in (slice(i, i + size) for i in range(0, regions, size)):
            self.mean[part], self.variance[part] = _k_means(table[self.scopes[part]], inputs, generator)
        self.variance.clamp_(self.min_variance, MAX_VARIANCE)


def _k_means(
    points: Float[Tensor, "l w n"], clusters: int, generator: torch.Generator
) -> tuple[Float[Tensor, "l i w"], Float[Tensor, "l i w"]]:
    """Means and variances of the clusters of each region; an empty cluster keeps the row it started from."""
    regions, width, rows = points.shape
    order = torch.rand(regions, rows, generator=generator).argsort(1)
    chosen = order[:, torch.arange(clusters) % rows].to(points.device)  # l i
    means = points.gather(2, chosen[:, None].expand(-1, width, -1)).mT  # l i w
    for _ in range(START_ROUNDS):
        member = _nearest(points, means)
        size = member.sum(2, keepdim=True)
        means = torch.where(size > 0, torch.bmm(member, points.mT) / size.clamp_min(1), means)
    member = _nearest(points, means)
    size, first = member.sum(2, keepdim=True), torch.bmm(member, points.mT)
    within = torch.bmm(member, points.mT.square()) - means * (2 * first - size * means)
    return means, (within + START_PRIOR) / (size + START_PRIOR)


def _nearest(points: Float[Tensor, "l w n"], means: Float[Tensor, "l i w"]) -> Float[Tensor, "l i n"]:
    """1 for the cluster whose mean is nearest, 0 for the others."""
    half_square = means.square().sum(2, keepdim=True) / 2
    distance = torch.baddbmm(half_square, means, points, alpha=-1)
    return torch.zeros_like(distance).scatter_(1, distance.argmin(1, keepdim=True), 1)
