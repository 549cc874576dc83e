"""Is an image in a set twice? Hashes that small changes of an image leave almost as they are."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image as Pillow

from rayad.arrays import Mask, Pixels

BANDS = 4
"""Of 16 bits: hashes that differ in fewer bits than there are bands share one of them."""
ALIKE = 0.99
"""Spearman's rho of two copies of an image is higher; that of the two most similar women of mini-MIAS is 0.975."""
CROWD = 2000
"""More images that share a band are alike because they show nothing, such as a black border."""


def difference_hash(pixels: Pixels, body: Mask) -> int:
    """64 bits: in an 8 by 9 picture of what was imaged, is a pixel brighter than its left neighbour?

    The box of the body is compared, so that a copy with another border or another contrast is found. The method is
    that of N. Krawetz, "Kind of Like That", 2013.
    """
    small = _box(pixels, body, (9, 8))
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def ranks(pixels: Pixels, body: Mask) -> Float[np.ndarray, "1024"]:
    """Ranks of a 32 by 32 picture of what was imaged, of mean 0 and length 1: the product of two is Spearman's rho.

    Smooth images have few bits of a hash that say anything; rho tells two healthy breasts of one shape from a copy.
    """
    from scipy.stats import rankdata  # which takes half a second

    ranked = rankdata(_box(pixels, body, (32, 32)))
    ranked -= ranked.mean()
    return (ranked / max(np.linalg.norm(ranked), 1e-9)).astype(np.float32)


def _box(pixels: Pixels, body: Mask, size: tuple[int, int]) -> np.ndarray:
    """The box of the body, drawn into so many columns and rows."""
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    box = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    return np.asarray(Pillow.fromarray(box).resize(size, Pillow.Resampling.BOX))


def pairs(hashes: Sequence[int], bits: int = BANDS - 1) -> list[tuple[int, int, int]]:
    """Which two hashes differ in at most so many bits, and in how many; fewer than `BANDS`."""
    codes, near = np.array(hashes, np.uint64), set()
    for band in range(BANDS):
        shared = codes >> np.uint64(16 * band) & np.uint64(0xFFFF)
        order = np.argsort(shared, kind="stable")
        for crowd in np.split(order, 1 + np.flatnonzero(np.diff(shared[order]))):
            if 1 < len(crowd) <= CROWD:
                differing = np.bitwise_count(codes[crowd, None] ^ codes[crowd])
                a, b = np.nonzero(np.triu(differing <= bits, 1))
                near.update(zip(crowd[a].tolist(), crowd[b].tolist(), differing[a, b].tolist(), strict=True))
    return sorted(near)
