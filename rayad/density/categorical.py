"""Categorical leaves: the distributions of codes at the bottom of a circuit.

In leaf region l, input distribution i is a product of distributions with own probabilities for each variable w of the
region: theta_lwki for code k. A row looks up the probabilities of its own codes, all inputs side by side, so the work
does not grow with the number of codes. No probability falls below FLOOR: a product of GROUP of them is a normal number
even in float32, and one logarithm serves them all.

Letters: n rows, m variables, l leaf regions, w variables of a region, k states, i inputs.
"""

from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from rayad.density.region_graph import Scopes, refuse_strange_scopes
from rayad.density.rows import added, chosen, held
from rayad.fit import ALONE, Sync
from rayad.tensors import Latents

FLOOR = 1e-9
"""The least probability of a code, also of one that training never saw."""
GROUP = 4
"""Probabilities that are multiplied before a logarithm is taken: FLOOR**GROUP is a normal number in float32."""
BLOCK = 1 << 19
"""Probabilities that are looked up at a time, so that they stay in the cache."""
KEPT = 4
"""Statistics keep the rows themselves until they take a KEPT-th of the memory of all counts."""
START_ROWS = 1024
"""Of the training rows, at most, for the clusters that the leaves start from."""
START_PRIOR = 4.0
"""Rows of the variables' own distribution that a cluster of the start is thought to hold beside its own."""

Theta = Float[Tensor, "l w k i"]
Flow = Float[Tensor, "l i n"]


class Codes(NamedTuple):
    """Where some rows find their probabilities in the table of all."""

    places: Int64[Tensor, "l w n"]
    """Rows of the table with l, w and k in one; -1 where the code is missing."""
    missing: bool
    """Whether any is."""

    @property
    def observed(self) -> Bool[Tensor, "l w n"]:
        return self.places >= 0


@dataclass
class Counts:
    """What rows say about each leaf: expected visits of every state; adds over batches and workers.

    The counts of a few rows are nearly all zero, and a table of them costs more than the rows. So these are kept as
    they are, and counted when they have become many or the table is asked for.
    """

    mass: Float[Tensor, "l w i"]
    """Expected visits of every leaf by rows whose code is not missing."""
    shape: torch.Size
    """Of the table."""
    rows: list[tuple[Codes, Float[Tensor, "l n i"]]] = field(default_factory=list)
    """Not yet counted: codes and expected visits."""
    table: Theta | None = None
    """Of the rows counted."""

    def add_(self, codes: Codes, flow: Flow) -> None:
        """Add rows that visit the leaves so often."""
        if codes.missing:
            self.mass += torch.bmm(codes.observed.to(flow), flow.mT)
        else:
            self.mass += flow.sum(2)[:, None]
        self.rows.append((codes, flow.mT.contiguous()))
        self._count_many_()

    def tensors(self) -> list[Tensor]:
        """All of it, for a sum over workers in place."""
        return [self.mass, self.count_()]

    def count_(self) -> Theta:
        """The table, with all rows counted."""
        if self.table is None:
            self.table = self.mass.new_zeros(self.shape)
        for codes, flow in self.rows:
            _add_visits(self.table, codes, flow)
        self.rows.clear()
        return self.table

    def visits(self) -> Float[Tensor, "l i"]:
        """Expected visits of every input distribution."""
        return self.mass.amax(1)

    def __add__(self, other: "Counts") -> "Counts":
        tables = [table for table in (self.table, other.table) if table is not None]
        table = reduce(torch.add, tables[1:], tables[0].clone()) if tables else None
        counts = Counts(self.mass + other.mass, self.shape, [*self.rows, *other.rows], table)
        counts._count_many_()
        return counts

    def _count_many_(self) -> None:
        if sum(flow.numel() for _, flow in self.rows) > self.shape.numel() // KEPT:
            self.count_()


class CategoricalLeaves(nn.Module):
    """All input distributions of a circuit of codes; takes rows of codes 0, 1, ... as floats, NaN where one is missing.

    An unfilled place of a region holds a variable of one state, whose code is always 0.
    """

    scopes: Tensor
    states: Tensor

    def __init__(self, scopes: Scopes, states: tuple[int, ...], inputs: int) -> None:
        super().__init__()
        self.variables, self.inputs = len(states), inputs
        self.register_buffer("scopes", scopes)
        self.register_load_state_dict_pre_hook(refuse_strange_scopes)
        self.register_buffer("states", torch.tensor([*states, 1], device=scopes.device), persistent=False)
        self.probabilities = nn.Parameter(torch.ones(*scopes.shape, max(states), inputs), requires_grad=False)
        self.probabilities.mul_(self.used).div_(self.sizes[..., None, None])

    @property
    def sizes(self) -> Int64[Tensor, "l w"]:
        """States of the variable in every place."""
        return self.states[self.scopes]

    @property
    def used(self) -> Bool[Tensor, "l w k 1"]:
        """The states that the variable in a place has; the others have probability 0."""
        states = torch.arange(self.probabilities.shape[2], device=self.probabilities.device)
        return (states < self.sizes[..., None].to(states))[..., None]

    @property
    def filled(self) -> Bool[Tensor, "l 1 w"]:
        """The places that hold a variable."""
        return (self.scopes < self.variables)[:, None]

    def features(self, x: Latents, missing: bool) -> Codes:
        """Where the rows' codes are in the table of probabilities."""
        codes = torch.cat([x.nan_to_num(-1).T.long(), self.scopes.new_zeros(1, len(x))])[self.scopes]  # l w n
        first = torch.arange(self.scopes.numel(), device=x.device).view(*self.scopes.shape, 1)
        places = codes + first * self.probabilities.shape[2]
        return Codes(places.masked_fill_(codes < 0, -1) if missing else places, missing)

    def forward(self, codes: Codes) -> Flow:
        """Log probability of every region's part of every row, in nats; missing codes left out (marginals)."""
        flat = self.probabilities.flatten(0, 2)
        size = max(1, BLOCK // max(1, self.inputs * codes.places.shape[2]))
        parts = [_log_products(flat, Codes(part, codes.missing)).mT for part in codes.places.split(size)]
        return torch.cat(parts)

    def tally(self, missing: bool) -> Counts:
        """Statistics of no rows."""
        regions, width, _, inputs = self.probabilities.shape
        return Counts(self.probabilities.new_zeros(regions, width, inputs), self.probabilities.shape)

    def add_(self, tally: Counts, flow: Flow, codes: Codes) -> None:
        """Add rows that visit the leaves so often."""
        tally.add_(codes, flow)

    def finish(self, tally: Counts) -> Counts:
        """The statistics of the rows that were added."""
        return tally

    def update(self, counts: Counts, step: float, prior: float, inertia: float) -> None:
        """M-step: move the probabilities towards the shares of the visits.

        Args:
            step: the way to go, 1 for all of it.
            prior: rows that every leaf is thought to have seen before, spread evenly over its states (Laplace).
            inertia: expected visits at which a leaf goes half of its step; from no visits it does not move.
        """
        theta = self.probabilities
        sizes = self.sizes[..., None].to(theta)
        mass = counts.mass + prior
        gain = step / (mass + max(inertia, torch.finfo(mass.dtype).tiny))
        steps = gain * mass
        gain = gain * (1 - FLOOR * sizes)
        even = steps * FLOOR + gain * (prior / sizes)
        torch.addcmul(even[:, :, None], theta, (1 - steps)[:, :, None], out=theta)
        self._clear_unused_()
        if counts.table is not None:
            theta.addcmul_(counts.table, gain[:, :, None])
        for codes, flow in counts.rows:
            _add_visits(theta, codes, flow, gain)

    def log_prior(self, prior: float) -> Tensor:
        """What the prior adds to the objective of full-batch learning, in nats, but for a constant."""
        used, sizes = self.used, self.sizes.to(self.probabilities)
        logs = [
            (torch.where(used[region], theta, 1).log().sum((1, 2)) / sizes[region]).sum()
            for region, theta in enumerate(self.probabilities)
        ]
        return torch.stack(logs).sum() * prior

    def start(
        self, x: Latents, generator: torch.Generator, sync: Sync = ALONE, likeness: Float[Tensor, "l i k"] | None = None
    ) -> None:
        """Clusters around rows drawn at random in every region; each input takes the shares of codes in its cluster.

        Args:
            likeness: by which a row chooses its cluster besides: log densities of the first START_ROWS rows.
        """
        rows = first_rows(x, sync)
        codes = self.features(rows, missing=True)
        chosen = torch.randint(len(rows), (len(codes.places), self.inputs), generator=generator).to(x.device)
        cluster = _nearest(codes, chosen, generator, likeness)
        shares = self._shares(x, sync)
        for w in range(self.scopes.shape[1]):
            theta = self.probabilities[:, w]  # l k i
            theta.copy_(shares[self.scopes[:, w], :, None] * START_PRIOR)
            place = codes.places[:, w]
            is_observed = (place >= 0).to(x)
            state = (place % theta.shape[1]) * self.inputs + cluster  # l n
            theta.flatten(1).scatter_add_(1, state, is_observed)
            theta /= theta.sum(1, keepdim=True)
        self.probabilities.mul_((1 - FLOOR * self.sizes.to(x))[..., None, None]).add_(FLOOR)
        self._clear_unused_()

    def factors(self, x: Latents) -> Float[Tensor, "l i w n"]:
        """Log probability of every single code, in nats; 0 where one is missing and in unfilled places."""
        codes = self.features(x, missing=True)
        looked_up = _look_up(self.probabilities.flatten(0, 2), codes.places.flatten(1), missing=True)  # l wn i
        return looked_up.log_().unflatten(1, codes.places.shape[1:]).permute(0, 3, 1, 2)

    def modes(self) -> tuple[Float[Tensor, "l i w"], Float[Tensor, "l i w"]]:
        """The most probable code of every leaf's variable, and its log probability."""
        largest, code = self.probabilities.max(2)
        return code.mT.to(largest), largest.mT.log()

    def expectations(self) -> tuple[Float[Tensor, "l i w"], Float[Tensor, "l i w"]]:
        """Mean and variance of every leaf's code, taken as a number."""
        code = torch.arange(self.probabilities.shape[2], device=self.scopes.device).to(self.probabilities)
        mean = torch.einsum("lwki,k->liw", self.probabilities, code)
        return mean, torch.einsum("lwki,k->liw", self.probabilities, code.square()) - mean.square()

    def draw(
        self, region: Int64[Tensor, "n k"], node: Int64[Tensor, "n k"], generator: torch.Generator
    ) -> Float[Tensor, "n k w"]:
        """A random code of every variable of these leaves."""
        odds = self.probabilities[region, :, :, node]  # n k w s
        codes = (odds / torch.empty_like(odds).exponential_(generator=generator)).argmax(3)
        return codes.to(odds)

    def revive(self, dead: Bool[Tensor, "l i"], x: Latents) -> None:
        """Start these inputs anew: half from the region's mean distribution, half from the code of a row of their own.

        Args:
            x: a row for each of them.
        """
        region, node = dead.nonzero().T
        codes = self.features(x, missing=True).places[region, :, torch.arange(len(x), device=x.device)]  # d w
        mean = self.probabilities.mean(3)[region]  # d w k
        one_hot = torch.zeros_like(mean).scatter_(2, (codes % mean.shape[2])[..., None], 1)
        self.probabilities[region, :, :, node] = torch.where((codes >= 0)[..., None], (mean + one_hot) / 2, mean)

    def _shares(self, x: Latents, sync: Sync) -> Float[Tensor, "v k"]:
        """Of every code among a variable's, with a row spread evenly over them; last that of an unfilled place."""
        max_states = self.probabilities.shape[2]
        states = torch.arange(max_states, device=x.device)
        shares = (states < self.states[:, None]).to(x)
        for v in self.scopes.unique().tolist():
            if v < self.variables:
                codes = x[:, v][~x[:, v].isnan()].long()
                shares[v] = shares[v] / shares[v].sum() + added(torch.bincount(codes, minlength=max_states).to(x), sync)
        return shares / shares.sum(1, keepdim=True)

    def _clear_unused_(self) -> None:
        if (self.sizes < self.probabilities.shape[2]).any():
            self.probabilities.masked_fill_(~self.used, 0)


def _look_up(flat: Float[Tensor, "t i"], place: Int64[Tensor, "l n"], missing: bool) -> Float[Tensor, "l n i"]:
    values = flat.index_select(0, (place.clamp_min(0) if missing else place).flatten()).view(
        *place.shape, flat.shape[1]
    )
    return values.masked_fill_((place < 0)[..., None], 1) if missing else values


def _log_products(flat: Float[Tensor, "t i"], codes: Codes) -> Float[Tensor, "l n i"]:
    """Logarithms of the products over the variables of each region."""
    logs = []
    for group in codes.places.split(GROUP, dim=1):
        looked_up = (_look_up(flat, place, codes.missing) for place in group.unbind(1))
        logs.append(reduce(Tensor.mul_, looked_up).log_())
    return reduce(Tensor.add_, logs)


def _add_visits(table: Theta, codes: Codes, flow: Float[Tensor, "l n i"], gain: Tensor | None = None) -> None:
    """Add visits, times the gain of their leaf (l w i), at the rows' codes."""
    flat = table.flatten(0, 2)
    for w, place in enumerate(codes.places.unbind(1)):
        visits = flow if gain is None else flow * gain[:, w, None]
        if codes.missing:
            visits = visits * (place >= 0)[..., None]
        flat.index_add_(0, place.clamp_min(0).flatten() if codes.missing else place.flatten(), visits.flatten(0, 1))


def first_rows(x: Latents, sync: Sync) -> Float[Tensor, "k m"]:
    """Of the rows of all workers, those that the start looks at."""
    return chosen(x, torch.arange(min(START_ROWS, held(x, sync).total)), sync)


def _nearest(
    codes: Codes, chosen: Int64[Tensor, "l i"], generator: torch.Generator, likeness: Flow | None
) -> Int64[Tensor, "l n"]:
    """The input whose row has the most codes in common with each row; ties fall at random."""
    places, rows = codes.places, codes.places.shape[2]
    nearest = []
    for region, (place, centre_rows) in enumerate(zip(places, chosen, strict=True)):
        score = torch.rand(rows, len(centre_rows), generator=generator).to(place.device)
        for variable_codes in place:  # one variable of the region
            score += variable_codes[:, None] == variable_codes[centre_rows]
        if likeness is not None:
            score += likeness[region].T
        nearest.append(score.argmax(1))
    return torch.stack(nearest)
