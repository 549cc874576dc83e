"""Where the patches of an image are taken: half inside the tissue, half along the breast's contour.

Dietrichstein et al. 2022, section 3: 120 patches of 64x64 an image.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64
from scipy import ndimage

from rayad.arrays import Image, Mask
from rayad.errors import ImageError, OptionError
from rayad.options import PATCH_SIDES, Count, PatchSide, Seed, Share

Places = Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class Sampling:
    """How many patches of an image, and where."""

    patches: Count = 120
    """Number of patches of an image."""
    contour: Share = 0.5
    """Share of them whose centre lies on the skin line; the others have their centre in the tissue."""
    seed: Seed = 0
    """Random seed of the places."""
    where: Literal["random", "centre"] = "random"
    """"centre": the one patch in the image's centre, for images of a patch's size."""
    patch_px: PatchSide = 64
    """Side of a patch, px of the working resolution: a multiple of 8 from 32 to 256."""

    def __post_init__(self) -> None:
        if self.where not in ("random", "centre"):
            raise OptionError(f"patches are taken at random or centre places, not {self.where!r}")
        if self.where == "centre" and (self.patches != 1 or self.contour):
            raise OptionError(f"an image has one centre, not {self.patches} patches or a contour")
        if self.patch_px not in PATCH_SIDES:
            raise OptionError(f"patch_px must be {PATCH_SIDES}, not {self.patch_px}")


def generator(seed: int, exam_id: str) -> np.random.Generator:
    """Random numbers that depend on the seed and the image alone, whoever draws them, in whatever order."""
    digest = hashlib.sha256(exam_id.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def skin_line(breast: Mask) -> Mask:
    """The breast's outermost pixels, without those where it only ends at the image's border."""
    inner = np.asarray(ndimage.binary_erosion(breast, np.ones((3, 3)), border_value=1), dtype=bool)
    return breast & ~inner


def choose(breast: Mask, tissue: Mask, sampling: Sampling, exam_id: str) -> tuple[Places, Places, np.ndarray]:
    """Rows, columns and region ("interior" or "contour") of the patch centres of one image.

    Drawn without replacement where there are enough places.

    Raises:
        ImageError: no tissue, so there is nothing to learn from.
    """
    if sampling.where == "centre":
        h, w = tissue.shape
        return np.array([h // 2]), np.array([w // 2]), np.array(["interior"])
    rng = generator(sampling.seed, exam_id)
    n_contour = round(sampling.patches * sampling.contour)
    parts = {"interior": (tissue, sampling.patches - n_contour), "contour": (skin_line(breast), n_contour)}
    rows, columns, regions = [], [], []
    for region, (mask, n) in parts.items():
        places = np.argwhere(mask)
        if n and not len(places):
            raise ImageError(f"{exam_id}: no {region} place to take {n} patches from")
        chosen_places = places[rng.choice(len(places), n, replace=len(places) < n)] if n else places[:0]
        rows.append(chosen_places[:, 0])
        columns.append(chosen_places[:, 1])
        regions += [region] * n
    return np.concatenate(rows), np.concatenate(columns), np.array(regions)


def cut(pixels: Image, rows: Places, columns: Places, patch_px: int = 64) -> Float32[np.ndarray, "n side side ..."]:
    """The patches around these centres; the image is continued by reflection, and colours come last.

    Raises:
        ImageError: the image is smaller than a patch.
    """
    h, w = pixels.shape[:2]
    if min(h, w) < patch_px:
        raise ImageError(f"an image of at least {patch_px}x{patch_px} px is wanted to take patches from, not {h}x{w}")
    half = patch_px // 2
    padded = np.pad(pixels, [(half, half), (half, half)] + [(0, 0)] * (pixels.ndim - 2), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (patch_px, patch_px), axis=(0, 1))  # h w [c] s s
    patches = windows[rows, columns]
    return np.ascontiguousarray(np.moveaxis(patches, 1, -1) if pixels.ndim == 3 else patches, dtype=np.float32)


def leaves_image(shape: tuple[int, int], rows: Places, columns: Places, patch_px: int = 64) -> np.ndarray:
    """Which of these patches reach over the image's border, so that a part of them is reflection."""
    half = patch_px // 2
    h, w = shape
    return (rows < half) | (rows > h - half) | (columns < half) | (columns > w - half)
