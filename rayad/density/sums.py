"""Sum nodes over products of two children (Peharz et al. 2020b, section 3), and what rows say about their weights.

    out_s = sum_ij W_sij a_i b_j,    W >= 0

in the linear domain: each region's values are divided by their maximum in the row, whose logarithm is kept beside
them. The matrix product W b and a sum over i serve one sum or many; nothing of the size of a times b is stored.

Letters: p products (pairs of regions), s sums of each, i and j nodes of the left and right child, n rows.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

MIN_WEIGHT = 1e-16
"""Of a sum, so that no row has likelihood zero; as in EiNet."""
BLOCK = 1 << 20
"""Numbers of an intermediate result, so that it stays in the cache."""

Left = Float[Tensor, "p i n"]
Right = Float[Tensor, "p j n"]
Weights = Float[Tensor, "p s i j"]


class SumLayer(nn.Module):
    """The sums of a level. `pooled`: a sum's weights add to one over all products, as at the root."""

    def __init__(self, products: int, sums: int, left: int, right: int, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.weights = nn.Parameter(torch.ones(products, sums, left, right), requires_grad=False)
        self._normalize()

    def start(self, generator: torch.Generator) -> None:
        """Weights drawn evenly from all distributions."""
        draw = torch.empty(self.weights.shape, dtype=torch.float64)
        self.weights.copy_(draw.exponential_(generator=generator))
        self._normalize()

    def forward(self, left: Left, right: Right) -> Float[Tensor, "p s n"]:
        out = left.new_empty(len(left), self.weights.shape[1], left.shape[2])
        for part in self._blocks(left):
            torch.sum(self._reach(part, right).mul_(left[part, None]), dim=2, out=out[part])
        return out

    def backward(
        self,
        gain: Float[Tensor, "p s n"],
        children: tuple[Left, Right],
        flows: tuple[Left, Right],
        visits: Weights,
    ) -> None:
        """Pass visits down, in closed form: d log p / d log of every child and weight.

        Args:
            gain: d log p / d out, as the children are scaled.
            children: the values that `forward` took.
            flows: filled with the expected visits of the children in every row.
            visits: added to, the expected visits of every weight over the rows, but for the factor W.
        """
        left, right = children
        for part in self._blocks(left):
            through = gain[part, :, None] * left[part, None]  # p s i n
            flat = through.flatten(1, 2)
            torch.bmm(self.weights[part].flatten(1, 2).mT, flat, out=flows[1][part]).mul_(right[part])
            visits[part].flatten(1, 2).baddbmm_(flat, right[part].mT)
            torch.sum(through.mul_(self._reach(part, right)), dim=1, out=flows[0][part])

    def update(self, visits: Weights, step: float, prior: float, inertia: float) -> None:
        """M-step: move the weights towards the shares of the visits.

        Args:
            visits: expected visits of every weight.
            step: the way to go, 1 for all of it.
            prior: visits that are thought to have come before, spread evenly over all weights (Laplace).
            inertia: visits at which a sum goes half of its step.
        """
        smoothed = visits + prior / visits.numel()
        total = smoothed.sum(self._own, keepdim=True)
        self.weights.lerp_(smoothed / total.clamp_min(torch.finfo(total.dtype).tiny), step * total / (total + inertia))
        self._normalize()

    def revive(self, left: Bool[Tensor, "p i"], right: Bool[Tensor, "p j"]) -> None:
        """Give every sum's weights of these children its mean weight."""
        revived = left[:, None, :, None] | right[:, None, None, :]
        self.weights.copy_(torch.where(revived, self.weights.mean(self._own, keepdim=True), self.weights))
        self._normalize()

    def log_prior(self, prior: float) -> Tensor:
        """What the prior adds to the objective of full-batch learning, in nats."""
        return self.weights.log().mean() * prior

    @property
    def _own(self) -> tuple[int, ...]:
        return (0, 2, 3) if self.pooled else (2, 3)

    def _normalize(self) -> None:
        self.weights.clamp_min_(MIN_WEIGHT).div_(self.weights.sum(self._own, keepdim=True))

    def _reach(self, part: slice, right: Right) -> Float[Tensor, "b s i n"]:
        """sum_j W_sij b_j of the b products in this part."""
        weights = self.weights[part]
        return torch.bmm(weights.flatten(1, 2), right[part]).unflatten(1, weights.shape[1:3])

    def _blocks(self, left: Left) -> Iterator[slice]:
        size = max(1, BLOCK // max(1, self.weights.shape[1] * left[0].numel()))
        return (slice(i, i + size) for i in range(0, len(left), size))
