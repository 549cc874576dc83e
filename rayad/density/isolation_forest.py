"""An isolation forest: what random cuts separate early is rare.

Liu, Ting and Zhou, "Isolation Forest", ICDM 2008, as scikit-learn grows it; the trees are kept as arrays.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from sklearn.ensemble import IsolationForest
from torch import Tensor, nn

from rayad.density._arrays import Learned, Others, in_parts
from rayad.errors import FormatError, OptionError
from rayad.options import Count, Size
from rayad.progress import Row
from rayad.tensors import Latents, Scores

EULER = float(np.euler_gamma)


@dataclass(frozen=True)
class Config:
    """Size of the forest."""

    trees: Size = 200
    """Number of trees in the forest."""
    samples: Count = 256
    """Training latents that a tree is grown from."""

    def __post_init__(self) -> None:
        if self.trees < 1 or self.samples < 2:
            raise OptionError(f"a forest has at least 1 tree of 2 samples, not {self.trees} of {self.samples}")

    def build(self, variables: int) -> "Forest":
        """A forest that learned nothing."""
        return Forest(self, variables)


class Forest(Learned):
    """Novelty: 2^(-mean depth / c), in (0, 1); c is the mean depth of a failing search."""

    left: Tensor
    """t k: the child of each node whose latents are at most the threshold; its own number in a leaf."""
    right: Tensor
    variable: Tensor
    threshold: Tensor
    depth: Tensor
    """t k: the depth at which a latent that ends here would be alone, on average."""
    unit: Tensor
    """c of the samples of a tree."""

    def __init__(self, config: Config, variables: int) -> None:
        of_nodes = dict.fromkeys(("left", "right", "variable", "threshold", "depth"), "t k")
        super().__init__(variables, **of_nodes, unit="")
        self.register_load_state_dict_pre_hook(_refuse_strange_nodes)
        self.config = config

    def learn(self, train: Latents, validation: Others, seed: int) -> Row:
        """Grow the trees."""
        z = self.standardize(train, 2).cpu().numpy()
        samples = min(self.config.samples, len(z))
        grown: Any = {"n_estimators": self.config.trees, "max_samples": samples, "random_state": seed}
        estimator = IsolationForest(**grown).fit(z)
        trees = [member.tree_ for member in estimator.estimators_]
        max_nodes = max(tree.node_count for tree in trees)
        arrays = {
            name: np.zeros((len(trees), max_nodes)) for name in ("left", "right", "variable", "threshold", "depth")
        }
        for i, tree in enumerate(trees):
            k, leaf = tree.node_count, tree.children_left < 0
            nodes = np.arange(k)
            arrays["left"][i, :k] = np.where(leaf, nodes, tree.children_left)
            arrays["right"][i, :k] = np.where(leaf, nodes, tree.children_right)
            arrays["variable"][i, :k] = np.where(leaf, 0, tree.feature)
            arrays["threshold"][i, :k] = np.where(leaf, 0, tree.threshold)
            arrays["depth"][i, :k] = _levels(tree) + _failing(tree.n_node_samples)
        self.keep(unit=_failing(np.array([samples]))[0], **arrays)
        return {"nodes": float(sum(tree.node_count for tree in trees))}

    def novelty(self, z: Latents) -> Scores:
        """How early random cuts separate each latent from the others."""
        return in_parts(self._novelty, z, 6 * len(self.left))

    def _novelty(self, z: Latents) -> Scores:
        rows = self.standardized(z).float().double()  # the trees were grown on float32
        trees = torch.arange(len(self.left), device=z.device)[:, None]
        row = torch.arange(len(z), device=z.device)
        node = torch.zeros(len(self.left), len(z), dtype=torch.int64, device=z.device)  # t n
        left, right, variable = (t.long() for t in (self.left, self.right, self.variable))
        for _ in range(self.left.shape[1]):  # no path is longer
            goes_left = rows[row, variable[trees, node]] <= self.threshold[trees, node]
            child = torch.where(goes_left, left[trees, node], right[trees, node])
            if torch.equal(child, node):
                break
            node = child
        return torch.exp2(-self.depth[trees, node].mean(0) / self.unit)


def _refuse_strange_nodes(forest: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """A hook before loading: children must be nodes, and what is cut must be variables.

    Raises:
        FormatError: they are not.
    """
    for name in ("left", "right", "variable"):
        array = state.get(prefix + name)
        if array is None or array.is_meta:
            continue
        number = cast(int, forest.variables) if name == "variable" else array.shape[-1]
        if not ((array >= 0) & (array < number) & (array == array.floor())).all():
            raise FormatError(f"{name} of a forest's nodes must be whole numbers from 0 to {number - 1}")


def _levels(tree: Any) -> np.ndarray:
    """How many cuts lead to each node; children come after their parent."""
    levels = np.zeros(tree.node_count)
    for parent, children in enumerate(zip(tree.children_left, tree.children_right, strict=True)):
        for child in children:
            if child >= 0:
                levels[child] = levels[parent] + 1
    return levels


def _failing(samples: np.ndarray) -> np.ndarray:
    """Mean depth of a failing search in a tree of so many samples (equation 1)."""
    n = np.maximum(samples.astype(float), 3)
    depth = 2 * (np.log(n - 1) + EULER) - 2 * (n - 1) / n
    return np.where(samples > 2, depth, np.where(samples == 2, 1.0, 0.0))
