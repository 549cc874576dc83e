"""Where a place lies in the body, in numbers by which places of different images can be compared."""

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from rayad.arrays import Mask
from rayad.errors import ImageError
from rayad.imaging.breast import chest_wall, skin_distance
from rayad.imaging.picture import Prepared

COORDINATES = ("skin", "row", "wall", "edge")
"""Columns of `position`: depth below the skin line, relative height, relative distance from the chest wall, and
distance from the edge of the scored tissue."""
WORKING_MM = 0.8
"""Pixel spacing at which distances are measured, unless that of the image is larger."""
SKIN_MM, EDGE_MM, DEEPEST_MM = 20.0, 15.0, 30.0
"""Millimetres that count as 1 below the skin and from the edge, and from the edge at most."""
ACROSS = 2.0
"""What the whole height or width of the body counts."""


def position(prepared: Prepared, rows: np.ndarray, columns: np.ndarray) -> Float[np.ndarray, "gh gw 4"]:
    """The coordinates of the places of a grid, scaled so that the distance of two of them says how alike they are.

    In an image without a skin line the first is 0; where the chest wall is unclear, it is taken to be at the left.

    Args:
        rows: of the places, px of the working resolution.
        columns: likewise.
    """
    every = max(1, round(WORKING_MM / prepared.spacing_mm))
    spacing_mm = every * prepared.spacing_mm
    body, tissue = (mask[every // 2 :: every, every // 2 :: every] for mask in (prepared.body, prepared.tissue))
    row, column = (
        np.minimum(places // every, side - 1) for places, side in zip((rows, columns), body.shape, strict=True)
    )
    grid = np.ix_(row, column)
    edge_mm = np.asarray(ndimage.distance_transform_edt(tissue)) * spacing_mm
    relative_row, relative_column = _relative(body, 1, row), _relative(body, 0, column)
    if chest_wall(body) == "right":
        relative_column = 1 - relative_column
    coordinates = np.empty((len(rows), len(columns), len(COORDINATES)), np.float32)
    coordinates[..., 0] = _skin_mm(body, spacing_mm)[grid] / SKIN_MM
    coordinates[..., 1] = ACROSS * relative_row[:, None]
    coordinates[..., 2] = ACROSS * relative_column[None, :]
    coordinates[..., 3] = np.minimum(edge_mm[grid], DEEPEST_MM) / EDGE_MM
    return coordinates


def _relative(body: Mask, axis: int, at: np.ndarray) -> np.ndarray:
    """Where rows or columns lie between the first and the last that hold something of the body, 0 to 1 inside.

    Args:
        axis: along which the mask is projected: 1 for rows.
    """
    ends = np.flatnonzero(body.any(axis))
    return (at - ends[0]) / max(1, ends[-1] - ends[0]) if ends.size else np.zeros(len(at))


def _skin_mm(body: Mask, spacing_mm: float) -> np.ndarray:
    try:
        return skin_distance(body, spacing_mm)
    except ImageError:
        return np.zeros(body.shape, np.float32)
