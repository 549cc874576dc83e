"""Decision trees as arrays: what scikit-learn grew, kept in a bundle and evaluated here, to its numbers.

All trees of an ensemble share one list of nodes. A node with a feature sends a row to the left where the row's feature
is at most the threshold, else to the right; a node without one is a leaf and has a value. Children come after their
parent, so that every way ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rayad.errors import FormatError

MOST_TREES, MOST_NODES, DEEPEST = 2000, 200_000, 64
"""Of a bundle's trees: how many, their nodes, and the nodes of a way from a root to a leaf."""
LEAF = -1
"""Stands for a feature and a child where there is none."""
ROWS = 256
"""Rows that go through all trees at once."""


@dataclass(frozen=True)
class Trees:
    """Trees whose leaves have values."""

    roots: Int[np.ndarray, " t"]
    feature: Int[np.ndarray, " k"]
    """The feature that a node looks at; -1 in a leaf."""
    threshold: Float[np.ndarray, " k"]
    left: Int[np.ndarray, " k"]
    """Child of rows whose feature is at most the threshold; -1 in a leaf."""
    right: Int[np.ndarray, " k"]
    value: Float[np.ndarray, " k"]

    def sums(self, x: Float[np.ndarray, "n f"]) -> Float[np.ndarray, " n"]:
        """Sum over the trees of the value of the leaf in which a row ends; features are rounded to float32 as
        scikit-learn does."""
        nodes = np.arange(self.feature.size)
        is_leaf = self.feature == LEAF  # a leaf looks at any feature, and leads to itself
        feature = np.where(is_leaf, 0, self.feature).astype(np.intp)
        child = np.concatenate([np.where(is_leaf, nodes, side) for side in (self.right, self.left)]).astype(np.intp)
        sums = np.zeros(len(x))
        for start in range(0, len(x), ROWS):
            rows = x[start : start + ROWS].astype(np.float32)
            first, flat = np.arange(len(rows)) * rows.shape[1], rows.ravel()
            node = np.repeat(self.roots[:, None], len(rows), 1).astype(np.intp)  # t n
            while not is_leaf.take(node).all():
                goes_left = flat.take(first + feature.take(node)) <= self.threshold.take(node)
                node = child.take(node + goes_left * nodes.size)
            sums[start : start + ROWS] = self.value.take(node).sum(0)
        return sums

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Plain arrays for a safetensors file."""
        return vars(self).copy()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], features: int) -> "Trees":
        """The inverse of `to_tensors`.

        Args:
            features: how many there are.

        Raises:
            FormatError: arrays that are no trees, or too many or too deep ones.
        """
        roots, feature, threshold, left, right, value = (tensors[name] for name in cls.__dataclass_fields__)
        nodes = feature.size
        arrays = (feature, threshold, left, right, value)
        if roots.ndim != 1 or any(array.shape != (nodes,) for array in arrays):
            raise FormatError("trees: a row of roots is wanted, and five rows of one size for the nodes")
        if not 0 < roots.size <= MOST_TREES or not 0 < nodes <= MOST_NODES:
            raise FormatError(f"trees: 1 to {MOST_TREES:,} trees of 1 to {MOST_NODES:,} nodes are wanted")
        if any(array.dtype.kind != "i" for array in (roots, feature, left, right)):
            raise FormatError("trees: roots, features and children are whole numbers")
        inner, number = feature != LEAF, np.arange(nodes)
        if (roots < 0).any() or (roots >= nodes).any() or (feature < LEAF).any() or (feature >= features).any():
            raise FormatError(f"trees: a root or a feature is none of {nodes} nodes and {features} features")
        for child in (left, right):
            if (child[~inner] != LEAF).any() or ((child <= number) | (child >= nodes))[inner].any():
                raise FormatError("trees: a child is no later node, or a leaf has one")
        if _depth(inner, left, right) > DEEPEST:
            raise FormatError(f"trees: a way to a leaf has more than {DEEPEST} nodes")
        return cls(roots, feature, threshold, left, right, value)


def of_estimators(estimators: Sequence[Any], values: Sequence[np.ndarray]) -> Trees:
    """The trees of scikit-learn's estimators.

    Args:
        values: of each, the value of every node, of which those of leaves matter.
    """
    trees = [estimator.tree_ for estimator in estimators]
    starts = np.cumsum([0, *(tree.node_count for tree in trees)])

    def children(name: str) -> np.ndarray:
        parts = (
            np.where(getattr(t, name) < 0, LEAF, getattr(t, name) + s) for t, s in zip(trees, starts, strict=False)
        )
        return np.concatenate(list(parts)).astype(np.int32)

    return Trees(
        roots=starts[:-1].astype(np.int32),
        feature=np.concatenate([np.where(t.children_left < 0, LEAF, t.feature) for t in trees]).astype(np.int32),
        threshold=np.concatenate([t.threshold for t in trees]),
        left=children("children_left"),
        right=children("children_right"),
        value=np.concatenate(list(values)).astype(np.float64),
    )


def _depth(inner: np.ndarray, left: np.ndarray, right: np.ndarray) -> int:
    """Nodes of the longest way from a node to a leaf."""
    below = np.ones(inner.size, np.int64)
    for node in np.nonzero(inner)[0][::-1]:
        below[node] = 1 + max(below[left[node]], below[right[node]])
    return int(below.max())
