"""Exact answers of a circuit beyond log p: parts given parts, draws, surprises, moments, classes.

Peharz et al. 2020b, "Einsum networks", sections 2 and 3: a circuit is multilinear in its leaves, so a variable is
left out by setting its factors to 1, and every answer here is one pass up and at most one down. All of them are
computed in float64, in the log domain between regions, and never below a leaf's own value cut to zero: an outlier is
what one asks about. Inside a sum values are relative to the largest of their region, where what underflows cannot
matter, because no weight is below `MIN_WEIGHT`.

Values and densities are in the units of the rows that the circuit learned from; NaN is a missing value. Codes have
probabilities where numbers have densities; means, variances and covariances take a code as a number, which says
something where codes are ordered. A circuit over principal axes answers what concerns whole rows; of single variables
`circuit.along_axes()` is asked.

Letters: n rows, m variables, c roots, r replicas, l leaf regions, i inputs, w variables of a region; p products,
s sums of each, i and j nodes of their left and right child.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy import special
from torch import Tensor

from rayad.density.leaves import PrincipalAxes
from rayad.density.region_graph import spread
from rayad.density.spn import BUDGET, SPN
from rayad.density.sums import Left, Right, Weights
from rayad.errors import OptionError
from rayad.tensors import Latents, Scores

Surprises = Float[Tensor, "n m"]
Given = Bool[Tensor, " m"] | Bool[Tensor, "n m"]
Classes = Float[Tensor, "n c"]
Combine = Callable[[Weights, Left, Right], Float[Tensor, "p s n"]]


class NodeValues(NamedTuple):
    """Logarithms of all nodes' values, for some rows."""

    levels: list[Tensor]
    """From the leaves up, without the roots; each of regions, nodes and rows."""
    roots: Float[Tensor, "r c n"]
    """Each replica's part of pi_c S_c."""


@runtime_checkable
class LogDensity(Protocol):
    """What a comparison asks of a density."""

    def log_prob(self, z: Latents) -> Scores: ...


@dataclass(frozen=True)
class Comparison:
    """How much better one density explains rows than another."""

    bits: float
    """Mean difference of the log likelihoods, in bits a dimension; positive where the first is better."""
    standard_error: float
    """Of `bits`; over groups where rows come in groups."""
    p: float
    """Two-sided, of the paired t-test of a mean difference of zero."""
    better: float
    """Share of the rows that the first explains better; a tie counts half."""


@torch.no_grad()
def log_conditional(circuit: SPN, z: Latents, given: Given) -> Scores:
    """log p(the others | the given variables) of every row, in nats.

    Args:
        given: true for the variables that are known, for all rows or for each.

    Raises:
        OptionError: another number of variables than the circuit was built for.
    """
    evidence = z.masked_fill(~given.expand(z.shape), torch.nan)
    log_probs = (_log_prob(circuit, z), _log_prob(circuit, evidence))
    return (log_probs[0] - log_probs[1]).to(circuit.mixing.dtype)


@torch.no_grad()
def surprise(circuit: SPN, z: Latents) -> Surprises:
    """-log p(z_v | all other observed variables of the row) of every variable v, in nats; NaN where z_v is missing.

    p is linear in the factors f_liv of variable v, with leaves L_li = prod_v f_liv:

        p(z without z_v) = sum_li (dp / dL_li) prod_{u != v} f_liu      over the leaves that hold v

    so one pass up and one down serve all variables. The derivative of a leaf holds its siblings only, and each
    variable's factors are taken relative to their largest: the surprise of one variable does not depend on how far
    out it or another lies, to 1e12 standard deviations.

    Raises:
        OptionError: another number of variables than the circuit was built for, or one over principal axes.
    """
    if isinstance(circuit.standardization, PrincipalAxes):
        raise OptionError(
            "surprises of single variables want a circuit over variables; this one is over principal axes"
        )
    circuit = _exact(circuit)
    variable_places = _homes(circuit)
    surprises = []
    for x in _parts(circuit, z):
        factors = circuit.leaves.factors(x)
        flat = factors.transpose(1, 2).flatten(0, 1)  # lw i n
        peak = flat.amax(1)[variable_places].amax(0)  # m n
        factors = factors - spread(circuit.leaves.scopes, peak.T)[:, None]
        node_values = _upward(circuit, factors.sum(2), _log_sum)
        log_terms = _sums_of_others(factors).add_(_slopes(circuit, node_values)[:, :, None])
        marginal = log_terms.logsumexp(1).flatten(0, 1)[variable_places].logsumexp(0)  # m n
        surprises.append((marginal - node_values.roots.flatten(0, 1).logsumexp(0) - peak).T)
    volume = circuit.standardization.scale.log()
    return (torch.cat(surprises) + volume).masked_fill(z.isnan(), torch.nan).to(z.dtype)


@torch.no_grad()
def conditional_mean(circuit: SPN, z: Latents) -> Latents:
    """The rows with every missing value replaced by its mean given the row's observed values.

    Raises:
        OptionError: another number of variables than the circuit was built for.
    """
    circuit = _exact(circuit)
    mean, _ = circuit.leaves.expectations()
    means = []
    for x in _parts(circuit, z):
        leaves = circuit.leaves.factors(x).sum(2)
        node_values = _upward(circuit, leaves, _log_sum)
        visits = (_slopes(circuit, node_values) + leaves - node_values.roots.flatten(0, 1).logsumexp(0)).exp()  # l i n
        means.append(_gather(circuit, torch.einsum("liw,lin->lwn", mean, visits)))
    return _filled(circuit, z, torch.cat(means))


@torch.no_grad()
def sample(circuit: SPN, n: int, seed: int) -> Latents:
    """n rows drawn from the circuit."""
    if isinstance(circuit.standardization, PrincipalAxes):
        return circuit.standardization.inverse(sample(circuit.along_axes(), n, seed))
    centre = circuit.standardization.centre
    return sample_given(circuit, torch.full((n, len(centre)), torch.nan, dtype=centre.dtype).to(centre.device), seed)


@torch.no_grad()
def sample_given(circuit: SPN, z: Latents, seed: int) -> Latents:
    """The rows with their missing values drawn, jointly, from p(missing | observed).

    From the roots down every sum draws one of its products in proportion to weight times values; the leaves that
    are reached draw their variables.

    Raises:
        OptionError: another number of variables than the circuit was built for.
    """
    circuit = _exact(circuit)
    generator = torch.Generator(z.device).manual_seed(seed)

    def draw(logits: Float[Tensor, "n k o"]) -> Int64[Tensor, "n k"]:
        """One option in proportion to its exponential: the largest after Gumbel noise."""
        return (logits - torch.empty_like(logits).exponential_(generator=generator).log_()).argmax(2)

    samples = []
    for x in _parts(circuit, z):
        node_values = _upward(circuit, circuit.leaves.factors(x).sum(2), _log_sum)
        region, node = _descend(circuit, node_values, draw)
        samples.append(_place(circuit, region, circuit.leaves.draw(region, node, generator)))
    return _filled(circuit, z, torch.cat(samples))


@torch.no_grad()
def mpe(circuit: SPN, z: Latents) -> Latents:
    """The rows with their missing values replaced by those of the most probable explanation.

    That is the largest product of weights and leaf densities over all *induced trees*: choices of one root, and of
    one product at each sum that is reached (Peharz et al. 2017, "On the latent variable interpretation in
    sum-product networks"). It is a value together with its path; the value alone that is most probable, summed over
    all paths, cannot be computed in general.

    Raises:
        OptionError: another number of variables than the circuit was built for.
    """
    circuit = _exact(circuit)
    value, height = circuit.leaves.modes()
    explanations = []
    for x in _parts(circuit, z):
        free = spread(circuit.leaves.scopes, x.isnan())[:, None]  # l 1 w n
        leaves = torch.where(free, height[..., None], circuit.leaves.factors(x)).sum(2)
        region, node = _descend(circuit, _upward(circuit, leaves, _log_max), lambda logits: logits.argmax(2))
        explanations.append(_place(circuit, region, value[region, node]))
    return _filled(circuit, z, torch.cat(explanations))


@torch.no_grad()
def moments(circuit: SPN) -> tuple[Float[Tensor, " m"], Float[Tensor, "m m"]]:
    """Mean and covariance of all variables.

    Every two variables meet in one leaf region or one product of each replica; what they have in common there is
    the product of their expected deviations, weighted by how often the pair of nodes is visited.
    """
    circuit = _exact(circuit)
    standardization, leaves = circuit.standardization, circuit.leaves
    average, variance = leaves.expectations()
    visits, pairs = _visits(circuit)
    mean = _gather(circuit, torch.einsum("liw,li->lw", average, visits)[..., None])  # 1 m
    deviation = (average - spread(leaves.scopes, mean)[..., 0][:, None]) * leaves.filled
    common = torch.diag(_gather(circuit, torch.einsum("liw,li->lw", variance, visits)[..., None])[0])
    level = deviation.new_zeros(*deviation.shape[:2], len(common) + 1)  # q i m+1, expected deviations of every node
    level.scatter_(2, leaves.scopes[:, None].expand(deviation.shape), deviation)
    level = level[..., :-1]
    common += torch.einsum("liu,li,liv->uv", level, visits, level)
    for layer, pair in zip(circuit.layers(), pairs, strict=True):
        if circuit.config.depth == 0:
            break
        left, right = level.chunk(2)
        cross_covariance = torch.einsum("piu,pij,pjv->uv", left, pair, right)
        common += cross_covariance + cross_covariance.T
        level = torch.einsum("psij,piu->psu", layer.weights, left) + torch.einsum("psij,pju->psu", layer.weights, right)
    dtype = circuit.mixing.dtype
    covariance = standardization.unscaled(standardization.unscaled(common).T)
    return standardization.inverse(mean)[0].to(dtype), covariance.to(dtype)


@torch.no_grad()
def log_prob_of_class(circuit: SPN, z: Latents) -> Classes:
    """log p(z | c) of every row under every root, in nats, for a circuit whose roots are classes.

    Raises:
        OptionError: another number of variables than the circuit was built for.
    """
    return (_log_joint(circuit, z) - circuit.mixing.double().log()).to(z.dtype)


@torch.no_grad()
def class_posterior(circuit: SPN, z: Latents) -> Classes:
    """p(c | z) of every row, by Bayes' rule with the circuit's own p(c).

    Raises:
        OptionError: another number of variables than the circuit was built for.
    """
    return _log_joint(circuit, z).softmax(1).to(z.dtype)


def compare(a: LogDensity, b: LogDensity, z: Latents, groups: Sequence[str] = ()) -> Comparison:
    """Whether `a` explains these rows better than `b`: a paired t-test of the rows' log likelihoods.

    Args:
        z: rows that neither density learned from.
        groups: whose each row is, where rows of one patient resemble each other: the standard error is then that of
            clusters (Liang and Zeger 1986), and the test has one degree of freedom fewer than groups.

    Raises:
        OptionError: fewer than 2 rows or groups, or not one group a row.
    """
    if groups and len(groups) != len(z):
        raise OptionError(f"a comparison wants one group a row, not {len(groups)} for {len(z)} rows")
    number = np.unique(groups, return_inverse=True)[1] if groups else np.arange(len(z))
    if len(set(number)) < 2:
        raise OptionError(f"a comparison needs at least 2 rows or groups, not {len(set(number))}")
    nats = (a.log_prob(z).double() - b.log_prob(z).double()).cpu().numpy()
    bits = nats / (z.shape[1] * math.log(2))
    total = np.bincount(number, bits - bits.mean())
    error = math.sqrt(len(total) / (len(total) - 1) * float(np.square(total).sum())) / len(bits)
    with np.errstate(divide="ignore", invalid="ignore"):  # no spread: equal densities, or p = 0
        p = 2 * float(special.stdtr(len(total) - 1, -abs(bits.mean() / np.float64(error))))
    better = float((nats > 0).mean() + (nats == 0).mean() / 2)
    return Comparison(float(bits.mean()), error, 1.0 if math.isnan(p) else p, better)


def _exact(circuit: SPN) -> SPN:
    """The same circuit in float64."""
    return circuit if circuit.mixing.dtype == torch.float64 else copy.deepcopy(circuit).double()


def _parts(circuit: SPN, z: Latents) -> Iterator[Latents]:
    """The standardized rows, a few at a time; at least one part, maybe empty."""
    factors = circuit.leaves.scopes.numel() * circuit.config.inputs
    pairs = sum(layer.weights[:, :, :, 0].numel() for layer in circuit.layers())
    yield from circuit.standardization(z).split(max(1, BUDGET // (16 * factors + 4 * pairs)))


def _log_prob(circuit: SPN, z: Latents) -> Scores:
    return _log_joint(circuit, z).logsumexp(1)


def _log_joint(circuit: SPN, z: Latents) -> Classes:
    """log p(z, c) in float64."""
    circuit = _exact(circuit)
    parts = [_upward(circuit, circuit.leaves.factors(x).sum(2), _log_sum).roots for x in _parts(circuit, z)]
    volume = circuit.standardization.log_volume(z.to(circuit.mixing))
    return torch.cat([part.logsumexp(0).T for part in parts]) - volume[:, None]


def _upward(circuit: SPN, leaves: Float[Tensor, "l i n"], combine: Combine) -> NodeValues:
    """Logarithms of all nodes, from those of the leaves."""
    levels = [leaves]
    for layer in circuit.layers()[:-1]:
        levels.append(combine(layer.weights, *_halves(circuit, levels[-1])))
    roots = combine(circuit.root.weights, *_halves(circuit, levels[-1]))
    return NodeValues(levels, roots + circuit.mixing.log()[:, None])


def _slopes(circuit: SPN, node_values: NodeValues) -> Float[Tensor, "l i n"]:
    """Logarithms of the derivatives of p by every leaf.

    At each sum it is the same product of weights and two inputs as on the way up, with the sum's own derivative in
    the place of the child whose derivative is wanted.
    """
    slope = circuit.mixing.log()[:, None].expand(node_values.roots.shape)
    for layer, level in zip(reversed(circuit.layers()), reversed(node_values.levels), strict=True):
        left, right = _halves(circuit, level)
        child_slopes = [_log_sum(layer.weights.transpose(1, 2), slope, right)]
        if circuit.config.depth:
            child_slopes.append(_log_sum(layer.weights.permute(0, 3, 1, 2), slope, left))
        slope = torch.cat(child_slopes)
    return slope


def _log_sum(weights: Weights, left: Left, right: Right) -> Float[Tensor, "p s n"]:
    """log sum_ij W_sij exp(a_i + b_j)."""
    top, peak = left.amax(1, keepdim=True), right.amax(1, keepdim=True)
    reach = torch.einsum("psij,pjn->psin", weights, (right - peak).exp())
    return torch.einsum("psin,pin->psn", reach, (left - top).exp()).log_().add_(top).add_(peak)


def _log_max(weights: Weights, left: Left, right: Right) -> Float[Tensor, "p s n"]:
    """max_ij log W_sij + a_i + b_j."""
    logs = weights.log()[..., None]  # p s i j 1
    reach = logs[..., 0, :] + right[:, None, None, 0]  # p s i n
    for j in range(1, right.shape[1]):
        torch.maximum(reach, logs[..., j, :] + right[:, None, None, j], out=reach)
    return reach.add_(left[:, None]).amax(2)


def _descend(
    circuit: SPN, node_values: NodeValues, choose: Callable[[Float[Tensor, "n k o"]], Int64[Tensor, "n k"]]
) -> tuple[Int64[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Follow each row's choices from the roots to the k = 2**depth leaves of one replica: their regions and inputs.

    Args:
        choose: an option for each row and region, from the options' logarithms.
    """
    option = choose(node_values.roots.flatten(0, 1).T[:, None])
    region, node = option // len(circuit.mixing), option % len(circuit.mixing)
    row = torch.arange(len(option), device=option.device)[:, None]
    for layer, level in zip(reversed(circuit.layers()), reversed(node_values.levels), strict=True):
        left, right = _halves(circuit, level)
        logits = layer.weights[region, node].log()  # n k i j
        logits = logits + left[region, :, row][..., None] + right[region, :, row][..., None, :]
        option, nodes = choose(logits.flatten(2)), right.shape[1]
        region, node = torch.cat([region, region + len(left)], 1), torch.cat([option // nodes, option % nodes], 1)
    return (region, node) if circuit.config.depth else (region[:, :1], node[:, :1])


def _halves(circuit: SPN, level: Float[Tensor, "q i n"]) -> tuple[Left, Right]:
    """The left and right regions of a level; without depth, the right one is nothing: log 1."""
    if circuit.config.depth:
        left, right = level.chunk(2)
        return left, right
    return level, level.new_zeros(len(level), 1, level.shape[2])


def _sums_of_others(factors: Float[Tensor, "l i w n"]) -> Float[Tensor, "l i w n"]:
    """For each variable, the sum of the others of its region; nothing is subtracted, so no digits are lost."""
    before, after = torch.zeros_like(factors), torch.zeros_like(factors)
    torch.cumsum(factors[:, :, :-1], 2, out=before[:, :, 1:])
    after[:, :, :-1] = factors[:, :, 1:].flip(2).cumsum(2).flip(2)
    return before.add_(after)


def _homes(circuit: SPN) -> Int64[Tensor, "r m"]:
    """Where each replica holds each variable, in the flattened places (l w) of all regions."""
    scopes, replicas = circuit.leaves.scopes, circuit.config.replicas
    places = torch.arange(scopes.numel(), device=scopes.device).view(scopes.shape)
    home = scopes.new_zeros(replicas, circuit.leaves.variables + 1)
    home[(places // scopes.shape[1]) % replicas, scopes] = places
    return home[:, :-1]


def _gather(circuit: SPN, values: Float[Tensor, "l w n"]) -> Float[Tensor, "n m"]:
    """The sum of each variable's places over all regions."""
    total = values.new_zeros(circuit.leaves.variables + 1, values.shape[2])
    return total.index_add_(0, circuit.leaves.scopes.flatten(), values.flatten(0, 1))[:-1].T


def _place(circuit: SPN, region: Int64[Tensor, "n k"], values: Float[Tensor, "n k w"]) -> Latents:
    """The values of each row's regions at their variables."""
    row = values.new_zeros(len(values), circuit.leaves.variables + 1)
    return row.scatter_(1, circuit.leaves.scopes[region].flatten(1), values.flatten(1))[:, :-1]


def _filled(circuit: SPN, z: Latents, x: Latents) -> Latents:
    """z with its missing values from standardized x."""
    return torch.where(z.isnan(), circuit.standardization.inverse(x).to(z.dtype), z)


def _visits(circuit: SPN) -> tuple[Float[Tensor, "l i"], list[Tensor]]:
    """How often each leaf is drawn, and on each level, from the bottom up, each pair of nodes (p i j)."""
    flow, pairs = circuit.mixing.expand(circuit.config.replicas, -1), []
    for layer in reversed(circuit.layers()):
        pair = torch.einsum("ps,psij->pij", flow, layer.weights)
        pairs.insert(0, pair)
        flow = torch.cat([pair.sum(2), pair.sum(1)]) if circuit.config.depth else pair.sum(2)
    return flow, pairs
