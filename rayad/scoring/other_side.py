"""What the other breast of a woman says about a place of one: each woman her own control.

Radiologists compare the breasts with each other: what is unusual among women may be usual in this one, and both of her
breasts show it. A density of both sides, the latents z of a place, those z' of the other breast around the counterpart
of the place (rayad/imaging/counterpart.py), and the context c, answers exactly, by marginals:

    -log p(z | z', c) = log p(z', c) - log p(z, z', c)       how unlikely a place is for this woman
    log p(z | c) - log p(z | z', c)                          how much less likely her other breast makes it: asymmetry

Where the other breast is not known, z' is left out: p(z | c), and no asymmetry, 0.
"""

from typing import Any

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import nn

from rayad.arrays import GridMask
from rayad.imaging.counterpart import counterparts
from rayad.imaging.picture import Prepared
from rayad.scoring import dense
from rayad.tensors import Context, Latents, Scores

WITHIN_MM = 8.0
"""Around a counterpart, the mean of whose latents is compared with: correspondences are no better than that. To 14
healthy women of mini-MIAS of whom nothing was learned the other breast then tells most of a place: by one Gaussian
1.30 nats given where the place lies, without a mean 0.96, with 20 mm 1.08.
"""


def other_latents(model: nn.Module, prepared: Prepared, step: int, tissue: GridMask) -> Latents:
    """The mean latents of the other breast around the counterpart of each place of the tissue, n m.

    Missing (nan) where there is no other breast, or nothing of it is scored.

    Args:
        model: encoder of patches; latents that are codes have no mean.
        step: distance of the places, px of the working resolution.
        tissue: the places.
    """
    latents = torch.full((int(tissue.sum()), model.latents), torch.nan)  # type: ignore[call-overload]
    other = prepared.other
    if other is None:
        return latents
    grid, other_grid = (dense.places(image.stored.shape[0], image.stored.shape[1], step) for image in (prepared, other))
    other_tissue = other.tissue[np.ix_(*other_grid)]
    if not other_tissue.any():
        return latents
    means = means_around(dense.encode(model, other.pixels, step, other_tissue), other_tissue, step * other.spacing_mm)
    return means[torch.from_numpy(counterparts(prepared, other, grid, other_grid))]


def means_around(latents: Latents, tissue: GridMask, step_mm: float) -> Latents:
    """The mean latents within `WITHIN_MM` of each place of the tissue."""
    indices = np.argwhere(tissue)
    around = KDTree(indices).query_ball_point(indices, WITHIN_MM / step_mm)
    return torch.stack([latents[near].mean(0) for near in around])


def given_other(density: Any, latents: Latents, others: Latents, context: Context) -> Scores:
    """-log p(z | z', c), in nats; what is missing (nan) in z' or c is left out.

    Args:
        density: of z, z' and c, which answers with variables left out.
    """
    return _log_prob(density, None, others, context) - _log_prob(density, latents, others, context)


def asymmetry(density: Any, latents: Latents, others: Latents, context: Context) -> Scores:
    """log p(z | c) - log p(z | z', c), in nats: the negative pointwise mutual information of the two sides.

    Args:
        density: as in `given_other`.
    """
    without = torch.full_like(others, torch.nan)
    return given_other(density, latents, others, context) - given_other(density, latents, without, context)


def _log_prob(density: Any, latents: Latents | None, others: Latents, context: Context) -> Scores:
    latents = torch.full_like(others, torch.nan) if latents is None else latents
    return density.log_prob(torch.cat([latents, others, context], 1))
