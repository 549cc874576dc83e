"""Leaves of numbers and codes in one circuit: Gaussian for some variables of a region, categorical for the others."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from rayad.density import categorical
from rayad.density.categorical import CategoricalLeaves, Codes, Counts
from rayad.density.leaves import Features, GaussianLeaves, Moments, Parameters, Raw
from rayad.density.region_graph import Scopes, refuse_strange_scopes
from rayad.fit import ALONE, Sync
from rayad.tensors import Latents


class MixedFeatures(NamedTuple):
    """What the leaves of both kinds take."""

    gaussian: Features
    categorical: Codes


@dataclass(frozen=True)
class MixedTally:
    """What rows have added up to so far."""

    gaussian: Raw
    categorical: Counts


@dataclass(frozen=True)
class MixedMoments:
    """What rows say about the leaves of both kinds; adds over batches and workers."""

    gaussian: Moments
    categorical: Counts

    def tensors(self) -> list[Tensor]:
        return [*self.gaussian.tensors(), *self.categorical.tensors()]

    def visits(self) -> Float[Tensor, "l i"]:
        """Expected visits of every input distribution."""
        return self.gaussian.visits().maximum(self.categorical.visits())

    def __add__(self, other: "MixedMoments") -> "MixedMoments":
        return MixedMoments(self.gaussian + other.gaussian, self.categorical + other.categorical)


class MixedLeaves(nn.Module):
    """All input distributions of a circuit; takes standardized rows in which codes are left as they are."""

    scopes: Tensor

    def __init__(self, scopes: Scopes, states: tuple[int, ...], inputs: int, min_variance: float) -> None:
        super().__init__()
        self.variables, self.inputs = len(states), inputs
        self.register_buffer("scopes", scopes)
        self.register_load_state_dict_pre_hook(refuse_strange_scopes)
        coded = torch.tensor([*states, 0], device=scopes.device) > 0
        self.gaussian = GaussianLeaves(_narrowed(scopes, ~coded), len(states), inputs, min_variance)
        self.categorical = CategoricalLeaves(_narrowed(scopes, coded), states, inputs)

    @property
    def filled(self) -> Bool[Tensor, "l 1 w"]:
        """The places that hold a variable."""
        return (self.scopes < self.variables)[:, None]

    def features(self, x: Latents, missing: bool) -> MixedFeatures:
        return MixedFeatures(self.gaussian.features(x, missing), self.categorical.features(x, missing))

    def forward(self, features: MixedFeatures) -> Float[Tensor, "l i n"]:
        """Log density of every region's part of every row, in nats; missing values left out (marginals)."""
        return self.gaussian(features.gaussian).add_(self.categorical(features.categorical))

    def tally(self, missing: bool) -> MixedTally:
        """Statistics of no rows."""
        return MixedTally(self.gaussian.tally(missing), self.categorical.tally(missing))

    def add_(self, tally: MixedTally, flow: Float[Tensor, "l i n"], features: MixedFeatures) -> None:
        """Add rows that visit the leaves so often."""
        self.gaussian.add_(tally.gaussian, flow, features.gaussian)
        self.categorical.add_(tally.categorical, flow, features.categorical)

    def finish(self, tally: MixedTally) -> MixedMoments:
        """The statistics of the rows that were added."""
        return MixedMoments(self.gaussian.finish(tally.gaussian), tally.categorical)

    def update(self, moments: MixedMoments, step: float, prior: tuple[float, float], inertia: float) -> None:
        """M-step of both kinds, which have a prior each."""
        self.gaussian.update(moments.gaussian, step, prior[0], inertia)
        self.categorical.update(moments.categorical, step, prior[1], inertia)

    def log_prior(self, prior: tuple[float, float]) -> Tensor:
        """What the priors add to the objective of full-batch learning, in nats, but for a constant."""
        return self.gaussian.log_prior(prior[0]) + self.categorical.log_prior(prior[1])

    def factors(self, x: Latents) -> Float[Tensor, "l i w n"]:
        """Log density of every single variable, in nats; 0 where a value is missing and in unfilled places."""
        values = torch.cat([self.gaussian.factors(x), self.categorical.factors(x)], dim=2)  # l i v n
        place = self._place[:, None, :, None].expand(-1, self.inputs, -1, len(x))
        return torch.where(self.filled[..., None], values.gather(2, place), 0)

    def modes(self) -> tuple[Parameters, Parameters]:
        """The most probable value of every leaf's variable, and its log density."""
        pairs = zip(self.gaussian.modes(), self.categorical.modes(), strict=True)
        value, height = (self._merged(*pair) for pair in pairs)
        return value, height

    def expectations(self) -> tuple[Parameters, Parameters]:
        """Mean and variance of every leaf's variable; a code is taken as a number."""
        pairs = zip(self.gaussian.expectations(), self.categorical.expectations(), strict=True)
        mean, variance = (self._merged(*pair) for pair in pairs)
        return mean, variance

    def draw(
        self, region: Int64[Tensor, "n k"], node: Int64[Tensor, "n k"], generator: torch.Generator
    ) -> Float[Tensor, "n k w"]:
        """A random value of every variable of these leaves."""
        values = [leaves.draw(region, node, generator) for leaves in (self.gaussian, self.categorical)]
        return torch.cat(values, dim=2).gather(2, self._place[region])

    def _merged(self, numbers: Float[Tensor, "l i u"], codes: Float[Tensor, "l i v"]) -> Parameters:
        """Tables of both kinds of leaves as one of all places."""
        return torch.cat([numbers, codes], dim=2).gather(2, self._place[:, None].expand(-1, self.inputs, -1))

    @property
    def _place(self) -> Int64[Tensor, "l w"]:
        """Where the variable of every place is among the places of both kinds; anywhere for an unfilled place."""
        kinds = torch.cat([self.gaussian.scopes, self.categorical.scopes], dim=1)
        return (kinds[:, None] == self.scopes[..., None]).byte().argmax(2)

    def revive(self, dead: Bool[Tensor, "l i"], x: Latents) -> None:
        """Start these inputs anew, each from a row of its own."""
        self.gaussian.revive(dead, x)
        self.categorical.revive(dead, x)

    def start(self, x: Latents, generator: torch.Generator, sync: Sync = ALONE) -> None:
        """k-means on the numbers; a row's codes count in the cluster that its numbers and codes are most like."""
        self.gaussian.start(x, generator, sync)
        rows = categorical.first_rows(x, sync)
        likeness = self.gaussian(self.gaussian.features(rows, bool(rows.isnan().any())))
        self.categorical.start(x, generator, sync, likeness)


def _narrowed(scopes: Scopes, keep: Bool[Tensor, " m"]) -> Int64[Tensor, "l v"]:
    """The scopes with these variables alone, in the same order."""
    is_kept = keep[scopes] & (scopes < len(keep) - 1)
    order = is_kept.logical_not().byte().argsort(dim=1, stable=True)
    width = max(1, int(is_kept.sum(1).max()))
    return scopes.masked_fill(~is_kept, len(keep) - 1).gather(1, order)[:, :width].contiguous()
