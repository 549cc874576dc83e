"""Distances between a predicted mask and the truth, in px of the evaluation grid.

Set-based: every place of one mask to the nearest place of the other, also inside. One missing place in
the middle of a lesion then costs one px; distances of the boundaries alone would charge half the lesion.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from rayad.arrays import Grid, GridMask


@dataclass(frozen=True)
class Distances:
    """Symmetric distances of two masks, in px of the grid."""

    hausdorff: float
    """The largest distance of a place of either mask to the other mask."""
    hd95: float
    """The same with the 95th percentile of each direction in place of its maximum."""
    surface: float
    """Mean distance of the border places of each mask to the border of the other, over both borders."""
    empty: int
    """How many of the two masks are empty: with one the distances are the grid's diagonal, with two 0."""


def distances(a: GridMask, b: GridMask) -> Distances:
    """Hausdorff distance, its 95th percentile and the mean surface distance of two masks of one grid."""
    empty = int(not a.any()) + int(not b.any())
    if empty:
        length = float(np.hypot(*a.shape)) if empty == 1 else 0.0
        return Distances(length, length, length, empty)
    a_to_b, b_to_a = _to(b)[a], _to(a)[b]
    border_a, border_b = border(a), border(b)
    border_distances = np.concatenate([_to(border_b)[border_a], _to(border_a)[border_b]])
    return Distances(
        hausdorff=float(max(a_to_b.max(), b_to_a.max())),
        hd95=float(max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95))),
        surface=float(border_distances.mean()),
        empty=0,
    )


def border(mask: GridMask) -> GridMask:
    """Places of the mask with a neighbor above, below, left or right that is not in it; the grid's rim is border."""
    return mask & ~np.asarray(ndimage.binary_erosion(mask), dtype=bool)


def highest(scores: Grid, tissue: GridMask, percentile: float = 99.0) -> GridMask:
    """The places above a percentile of the image's own tissue places: the mask of Dietrichstein et al. (2022)."""
    inside = np.where(tissue, scores, -np.inf)
    return inside > np.percentile(scores[tissue], percentile)


def _to(mask: GridMask) -> Float[np.ndarray, "gh gw"]:
    return np.asarray(ndimage.distance_transform_edt(~mask))
