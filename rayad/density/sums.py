"""Sum nodes over products of two children, and what rows say about their weights.

    out_s = sum_ij W_sij a_i b_j,    W >= 0

in the linear domain: each region's values are divided by their maximum in the row, whose logarithm is kept beside
them. Weights are dense (Peharz et al. 2020b, section 3) or two block-diagonal factors (Zhang et al. 2025, "Scaling
probabilistic circuits via Monarch matrices"): with B blocks and the sums s = (q, l) divided among them,

    W_(q,l)ij = U_qli V_qij,    sum_i U_qli = 1,    sum_j V_qij = 1

so that W b costs B I J products a row in place of S I J. One block has one V for all sums; as many blocks as sums are
dense weights. Nothing of the size of a times b is stored.

Letters: p products (pairs of regions), s sums of each, i and j nodes of the left and right child, n rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rayad.errors import OptionError

MIN_WEIGHT = 1e-16
"""Of a sum, so that no row has likelihood zero; as in EiNet."""
BLOCK = 1 << 20
"""Numbers of an intermediate result, so that it stays in the cache."""
MOST_WEIGHTS = 1 << 28
"""Weights of a level that are multiplied out from two factors: 2 GiB in float64."""

Left = Float[Tensor, "p i n"]
Right = Float[Tensor, "p j n"]
Weights = Float[Tensor, "p s i j"]
Table = Float[Tensor, "p ..."]
"""Weights that are learned: those of a dense layer, or one of two factors."""


Pair = tuple[Left, Right]
"""Of the left and of the right child."""


class SumLayer(nn.Module, ABC):
    """The sums of a level."""

    nodes: int
    """Sums of all products."""
    weights: Weights
    """W, multiplied out where it is not learned as it is."""

    @abstractmethod
    def tables(self) -> Sequence[tuple[Table, tuple[int, ...]]]:
        """What is learned, each with the dimensions over which it adds to one."""

    @abstractmethod
    def forward(self, left: Left, right: Right) -> Float[Tensor, "p s n"]:
        """The sums' values."""

    @abstractmethod
    def backward(self, gain: Float[Tensor, "p s n"], children: Pair, flows: Pair, visits: Sequence[Table]) -> None:
        """Pass visits down, in closed form: d log p / d log of every child and weight.

        Args:
            gain: d log p / d out, as the children are scaled.
            children: the values that `forward` took.
            flows: filled with the expected visits of the children in every row.
            visits: added to, the expected visits of every table's weights over the rows, but for a factor: the weight.
        """

    @abstractmethod
    def revive(self, left: Bool[Tensor, "p i"], right: Bool[Tensor, "p j"]) -> None:
        """Give every sum's weights of these children its mean weight."""

    def start(self, generator: torch.Generator) -> None:
        """Weights drawn evenly from all distributions."""
        for table, own in self.tables():
            draw = torch.empty(table.shape, dtype=torch.float64)
            table.copy_(draw.exponential_(generator=generator))
            _normalize(table, own)

    def update(self, visits: Sequence[Table], step: float, prior: float, inertia: float) -> None:
        """M-step: move the weights towards the shares of the visits.

        Args:
            visits: expected visits of every table's weights.
            step: the way to go, 1 for all of it.
            prior: visits that are thought to have come before, spread evenly over all weights of a table (Laplace).
            inertia: visits at which a sum goes half of its step.
        """
        for (table, own), counts in zip(self.tables(), visits, strict=True):
            smoothed = counts + prior / counts.numel()
            total = smoothed.sum(own, keepdim=True)
            table.lerp_(smoothed / total.clamp_min(torch.finfo(total.dtype).tiny), step * total / (total + inertia))
            _normalize(table, own)

    def log_prior(self, prior: float) -> float:
        """What the prior adds to the objective of full-batch learning, in nats."""
        return sum(float(table.log().mean()) for table, _ in self.tables()) * prior


def _normalize(table: Table, own: tuple[int, ...]) -> None:
    table.clamp_min_(MIN_WEIGHT).div_(table.sum(own, keepdim=True))


def _even(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape), requires_grad=False)


class DenseSums(SumLayer):
    """Sums with a weight for every pair. `pooled`: the weights add to one over all products, as at the root."""

    def __init__(self, products: int, sums: int, left: int, right: int, pooled: bool) -> None:
        super().__init__()
        self.nodes = products * sums
        self.own = (0, 2, 3) if pooled else (2, 3)
        self.weights = _even(products, sums, left, right)
        _normalize(self.weights, self.own)

    def tables(self) -> list[tuple[Table, tuple[int, ...]]]:
        return [(self.weights, self.own)]

    def forward(self, left: Left, right: Right) -> Float[Tensor, "p s n"]:
        out = left.new_empty(len(left), self.weights.shape[1], left.shape[2])
        for part in _parts(self.weights, left):
            torch.sum(_reach(self.weights, part, right).mul_(left[part, None]), dim=2, out=out[part])
        return out

    def backward(self, gain: Float[Tensor, "p s n"], children: Pair, flows: Pair, visits: Sequence[Table]) -> None:
        left, right = children
        for part in _parts(self.weights, left):
            through = gain[part, :, None] * left[part, None]  # p s i n
            flat = through.flatten(1, 2)
            torch.bmm(self.weights[part].flatten(1, 2).mT, flat, out=flows[1][part]).mul_(right[part])
            visits[0][part].flatten(1, 2).baddbmm_(flat, right[part].mT)
            torch.sum(through.mul_(_reach(self.weights, part, right)), dim=1, out=flows[0][part])

    def revive(self, left: Bool[Tensor, "p i"], right: Bool[Tensor, "p j"]) -> None:
        _revive(self.weights, self.own, left[:, None, :, None] | right[:, None, None, :])


class MonarchSums(SumLayer):
    """Sums in blocks: the weights of a block's sums share a factor (Zhang et al. 2025, section 4)."""

    def __init__(self, products: int, sums: int, left: int, right: int, blocks: int) -> None:
        super().__init__()
        self.nodes = products * sums
        self.outer = _even(products, blocks, sums // blocks, left)
        """U: p q l i."""
        self.inner = _even(products, blocks, left, right)
        """V: p q i j."""
        for table, own in self.tables():
            _normalize(table, own)

    @property
    def weights(self) -> Weights:  # pyright: ignore[reportIncompatibleVariableOverride]
        number = self.nodes * self.inner[0, 0].numel()
        if number > MOST_WEIGHTS:
            raise OptionError(
                f"queries multiply out the weights of sums in blocks, and a level of this circuit has {number:,}:"
                f" more than {MOST_WEIGHTS:,}"
            )
        return (self.outer[..., None] * self.inner[:, :, None]).flatten(1, 2)

    def tables(self) -> list[tuple[Table, tuple[int, ...]]]:
        return [(self.outer, (3,)), (self.inner, (3,))]

    def forward(self, left: Left, right: Right) -> Float[Tensor, "p s n"]:
        out = left.new_empty(len(left), self.outer.shape[1] * self.outer.shape[2], left.shape[2])
        for part in _parts(self.inner, left):
            pairs = self._pairs(part, left, right)
            sums = out[part].unflatten(1, self.outer.shape[1:3]).flatten(0, 1)  # (p q) l n
            torch.bmm(self.outer[part].flatten(0, 1), pairs.flatten(0, 1), out=sums)
        return out

    def backward(self, gain: Float[Tensor, "p s n"], children: Pair, flows: Pair, visits: Sequence[Table]) -> None:
        left, right = children
        for part in _parts(self.inner, left):
            pairs = self._pairs(part, left, right).flatten(0, 1)
            block_gain = gain[part].unflatten(1, self.outer.shape[1:3]).flatten(0, 1)  # (p q) l n
            visits[0][part].flatten(0, 1).baddbmm_(block_gain, pairs.mT)
            through = torch.bmm(self.outer[part].flatten(0, 1).mT, block_gain)  # (p q) i n
            blocks = len(left[part]), -1, *left.shape[1:]
            torch.sum((through * pairs).view(blocks), dim=1, out=flows[0][part])
            flat = through.view(blocks).mul_(left[part, None]).flatten(1, 2)  # p (q i) n
            visits[1][part].flatten(1, 2).baddbmm_(flat, right[part].mT)
            torch.bmm(self.inner[part].flatten(1, 2).mT, flat, out=flows[1][part]).mul_(right[part])

    def revive(self, left: Bool[Tensor, "p i"], right: Bool[Tensor, "p j"]) -> None:
        _revive(self.outer, (3,), left[:, None, None, :])
        _revive(self.inner, (3,), right[:, None, None, :])

    def _pairs(self, part: slice, left: Left, right: Right) -> Float[Tensor, "b q i n"]:
        """a_i sum_j V_qij b_j of the products in this part."""
        return _reach(self.inner, part, right).mul_(left[part, None])


def _reach(table: Weights, part: slice, right: Right) -> Float[Tensor, "b s i n"]:
    """sum_j W_sij b_j of the b products in this part, for weights W or a factor of them."""
    weights = table[part]
    return torch.bmm(weights.flatten(1, 2), right[part]).unflatten(1, weights.shape[1:3])


def _parts(table: Weights, left: Left) -> Iterator[slice]:
    """Products whose `_reach` is computed together."""
    size = max(1, BLOCK // max(1, table.shape[1] * left[0].numel()))
    return (slice(i, i + size) for i in range(0, len(left), size))


def _revive(table: Table, own: tuple[int, ...], places: Bool[Tensor, "p ..."]) -> None:
    table.copy_(torch.where(places, table.mean(own, keepdim=True), table))
    _normalize(table, own)
