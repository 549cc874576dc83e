"""Where a place lies in the body: what is usual at the skin line is unusual elsewhere."""

import numpy as np
from scipy import ndimage

from rayad.arrays import Pixels
from rayad.errors import ImageError
from rayad.imaging.breast import skin_distance
from rayad.imaging.picture import Prepared

CONTEXT = ("skin_mm", "rel_row", "rel_col", "ring_density", "image_density")
"""The maps that `context` gives."""


def context(prepared: Prepared, patch_px: int = 64) -> dict[str, Pixels]:
    """A map each of what is known about a place; nothing of the patch itself, or a lesion would explain itself away.

    ``skin_mm`` is the distance from the skin line, nan in an image without one; ``rel_row`` and ``rel_col`` the place
    in the body's bounding box, 0 to 1; ``ring_density`` the mean intensity of the tissue in a box of twice the side of
    the place's patch around it, without the patch (0 where the ring holds no tissue); ``image_density`` that of all the
    tissue.
    """
    rows, columns = np.nonzero(prepared.body)
    h, w = prepared.stored.shape
    rel_row = (np.arange(h, dtype=np.float32) - rows.min()) / max(1, np.ptp(rows))
    rel_col = (np.arange(w, dtype=np.float32) - columns.min()) / max(1, np.ptp(columns))
    weight = prepared.tissue.astype(np.float32)
    inside, outside = (
        [ndimage.uniform_filter(a, side, mode="constant") * side**2 for a in (prepared.stored * weight, weight)]
        for side in (patch_px, 2 * patch_px)
    )
    area = outside[1] - inside[1]
    ring = np.where(area > 0.5, (outside[0] - inside[0]) / np.maximum(area, 0.5), 0)
    mean_density = prepared.stored[prepared.tissue].mean() if prepared.tissue.any() else 0.0
    return {
        "skin_mm": _skin(prepared),
        "rel_row": np.repeat(rel_row[:, None], w, axis=1),
        "rel_col": np.repeat(rel_col[None, :], h, axis=0),
        "ring_density": ring.astype(np.float32),
        "image_density": np.full((h, w), mean_density, np.float32),
    }


def _skin(prepared: Prepared) -> Pixels:
    try:
        return skin_distance(prepared.body, prepared.spacing_mm).astype(np.float32)
    except ImageError:
        return np.full(prepared.body.shape, np.nan, np.float32)
