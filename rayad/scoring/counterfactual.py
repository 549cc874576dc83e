"""What a place would look like if it were healthy: surprising latents give way to what the others expect.

A density that has learned from healthy patches knows each latent's distribution given the others. The latents of a
place whose surprise -log p(z_v | z_rest) is high are left out, one after the other, and then replaced by their mean
given those that stay; the model decodes the result. Both are exact (rayad/density/queries.py). What is shown beside
it is the difference of the image to it. (Not that of the reconstruction: latents far from all training decode to
anything; a bright mass has been seen to come out darker than black.)

It is an explanation of the likelihood, not of the lesion: what the encoder does not see, no latent can take back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rayad import bounds
from rayad.arrays import Grid, Pixels
from rayad.density import queries
from rayad.density.leaves import PrincipalAxes
from rayad.density.spn import SPN
from rayad.errors import OptionError
from rayad.imaging.picture import Prepared
from rayad.models._blocks import patch_of
from rayad.scoring import dense
from rayad.scoring.detector import Detector
from rayad.scoring.scores import LatentScore, told
from rayad.tensors import Latents, Patches, like

NATS = 4.0
"""Surprise above which a latent is replaced, the latent measured in its standard deviations in training: that of a
standard normal 2.5 standard deviations from its mean, where 13 of 1,000 values lie. Most of a healthy place stays."""
TOGETHER = 1024
"""Places whose latents are looked at together: between two of them the work can be ended."""
STEP = 16
"""Distance of the decoded patches, px: a pixel lies in 16 of 64 px."""


Decode = Callable[[Latents], Patches]


@dataclass(frozen=True)
class Counterfactual:
    """The healthy version of an image, in the picture that the model sees."""

    pixels: Pixels
    """The healthy version of the tissue; the image itself around it."""
    change: Pixels
    """The image minus its healthy version, 0 outside the tissue: positive where it is too bright to be likely."""
    replaced: Grid
    """How many latents of each decoded place were replaced; nan outside the tissue."""


def lacking(detector: Detector) -> str:
    """Why a detector has no counterfactual; an empty text if it has one."""
    score = detector.score
    if not isinstance(score, LatentScore) or score.name != "likelihood":
        return f"detector {detector.name!r} has the score {score.name}, which has no density"
    if getattr(score.model.module, "decoder", None) is None:
        return f"detector {detector.name!r}: the model {score.model.name!r} has no decoder"
    if not isinstance(score.density.module, SPN):
        return f"detector {detector.name!r}: the density {score.density.name!r} is no circuit"
    if any(getattr(score.density.config, "states", ())):
        return f"detector {detector.name!r}: its latents are codes, of which there is no mean"
    if detector.preprocessing.channels != 1:
        return f"detector {detector.name!r}: its images have colours"
    return ""


@torch.no_grad()
def healthy(density: SPN, z: Latents, nats: float = NATS) -> tuple[Latents, Int64[Tensor, " n"]]:
    """The latents with the surprising ones replaced by their mean given those that stay, and how many were.

    One at a time, the most surprising first, until none is: one that is far out makes the others look surprising.
    Where the circuit is over principal axes, these are what surprises and gives way.

    Args:
        nats: surprise above which a latent is replaced, the latent measured in its standard deviations in training.
    """
    if isinstance(density.standardization, PrincipalAxes):
        replaced, number = healthy(density.along_axes(), density.standardization(z), nats)
        return torch.where((number > 0)[:, None], density.standardization.inverse(replaced), z), number
    latents, rows = z.clone(), torch.arange(len(z), device=z.device)
    log_scale = density.standardization.scale.log().to(z.dtype)
    while len(rows):
        bounds.go_on()
        surprise, variable = (queries.surprise(density, latents[rows]) - log_scale).nan_to_num(-torch.inf).max(1)
        rows, variable = rows[surprise > nats], variable[surprise > nats]
        latents[rows, variable] = torch.nan
    return queries.conditional_mean(density, latents), latents.isnan().sum(1)


@torch.no_grad()
def patches(detector: Detector, x: Patches, nats: float = NATS) -> tuple[Patches, Patches]:
    """The reconstructions of some patches, and what they would look like if they were healthy.

    Raises:
        OptionError: the detector is lacking something; says what.
    """
    model, decode, density = _parts(detector)
    z = model.encode(x)
    return decode(z), decode(healthy(density, z, nats)[0])


@torch.no_grad()
def image(detector: Detector, prepared: Prepared, step: int = STEP, nats: float = NATS) -> Counterfactual:
    """The healthy version of the tissue of an image: decoded patches that overlap, blended with tapered windows.

    Args:
        step: distance of the decoded patches, px of the working resolution.

    Raises:
        OptionError: the detector is lacking something; says what.
        ImageError: the image is smaller than a patch, or has more places than may be scored.
    """
    model, decode, density = _parts(detector, prepared)
    height, width = prepared.pixels.shape
    rows, columns = dense.places(height, width, step)
    tissue = prepared.tissue[np.ix_(rows, columns)]
    bounds.current().require_places(int(tissue.sum()))
    z = dense.encode(cast(nn.Module, model), prepared.pixels, step, tissue)
    parts = [healthy(density, part, nats) for part in z.split(TOGETHER)]
    healthy_latents, number = torch.cat([latents for latents, _ in parts]), torch.cat([count for _, count in parts])
    replaced = np.full(tissue.shape, np.nan, np.float32)
    replaced[tissue] = number.numpy()
    k, j = np.nonzero(tissue)
    corners = torch.from_numpy(np.stack([rows[k], columns[j]], 1))
    healthy_pixels = _blended(decode, healthy_latents, corners, (height, width), patch_of(model))
    pixels = np.where(prepared.tissue & ~np.isnan(healthy_pixels), healthy_pixels, prepared.pixels)
    return Counterfactual(pixels, prepared.pixels - pixels, replaced)


def _parts(detector: Detector, prepared: Prepared | None = None) -> tuple[dense.ImageModel, Decode, SPN]:
    """Model, its decoder and the circuit; of an image, the model that knows its facts."""
    reason = lacking(detector)
    if reason:
        raise OptionError(f"{reason}: a healthy counterfactual needs a model with a decoder and a circuit")
    assert isinstance(detector.score, LatentScore)  # nothing is lacking
    module = detector.score.model.module
    model: Any = told(module, prepared) if prepared else module

    def decode(z: Latents) -> Patches:
        """In the precision of the model, as the encoder is."""
        return getattr(model, "decode", model.decoder)(z.to(like(model.decoder))).float()

    return model, decode, detector.score.density.module


def _blended(
    decode: Decode, z: Latents, corners: Int64[torch.Tensor, "n 2"], shape: tuple[int, int], side: int
) -> Float[np.ndarray, "h w"]:
    """The decoded patches, blended; nan where none reaches.

    Args:
        z: healthy latents of the places.
        corners: of the places' patches, in the image continued by half a patch.
        shape: rows and columns of the image.
        side: of a patch, px.
    """
    taper = torch.hann_window(side + 2, periodic=False)[1:-1]
    window = taper[:, None] * taper
    total = torch.zeros(2, shape[0] + side, shape[1] + side)  # patches, weight
    for start in range(0, len(corners), dense.BATCH):
        bounds.go_on()
        part = slice(start, start + dense.BATCH)
        decoded = decode(z[part])[:, 0]
        stack = torch.stack([decoded, torch.ones_like(decoded)], 1) * window
        for (row, column), patch in zip(corners[part].tolist(), stack, strict=True):
            total[:, row : row + side, column : column + side] += patch
    total = total[:, side // 2 : -side // 2, side // 2 : -side // 2]
    return (total[0] / total[1]).numpy()
