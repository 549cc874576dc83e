"""Lesions drawn into healthy patches: what a network learns to find that has never seen a real one.

A lesion is a region of another healthy patch, faded in, and brightness added on top, both within a smooth outline:

    y = (1 - a m) x + a m f + c m,

x the patch, f the other one, m in [0, 1] the outline. With c = 0 that is foreign patch interpolation (Tan et al.,
"Detecting outliers with foreign patch interpolation", MELBA 2022), with a = 0 a mass on top of the tissue, as it is
in a projection. Outlines are ellipses with lobes whose border is sharp or fades; some have spicules, lines that leave
them in all directions. A cluster of specks is made of such lesions of a pixel or two, bright and without f.

All is computed from numbers that are uniform in [0, 1], a row a patch, so that whoever draws these has the same
lesions. Those of the phantom (rayad/datasets/phantom_lesions.py), on which settings are chosen, are drawn otherwise.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rayad.tensors import Patches

Kind = Literal["all", "masses", "specks"]
Uniform = Float[Tensor, "n u"]
Map = Float[Tensor, "n h w"]
LOBES = 4
"""Waves of an outline: 2 to 5 around it."""
SPICULES = 12
"""Lines that leave a spiculated mass, at most."""
SPECKS = 16
"""Specks of a cluster, at most."""
CENTRES = 4
"""Places that are tried for a lesion: it lies at the first of them that is no background, or at the last."""
MASS_NUMBERS = 10 + 2 * LOBES + 3 * SPICULES
SPECK_NUMBERS = 3 + 4 * SPECKS
NUMBERS = 1 + 2 * CENTRES + MASS_NUMBERS + SPECK_NUMBERS
"""Uniform numbers of a lesion."""
SHARE = 0.5
"""Of the patches that get a lesion."""


def with_lesions(
    x: Patches, foreign: Patches, u: Uniform, kind: Kind, largest_px: float, contrast: tuple[float, float]
) -> tuple[Patches, Map]:
    """The patches, half of them with a lesion, and where these are: 1 in a lesion, 0 elsewhere.

    Args:
        foreign: another healthy patch for each.
        u: `NUMBERS` a patch.
        largest_px: radius of the largest mass, px; the smallest has an eighth of it.
        contrast: least and most brightness that is added, full scales.
    """
    which, at, of_mass, of_specks = u[:, 0], *u[:, 1:].split([2 * CENTRES, MASS_NUMBERS, SPECK_NUMBERS], 1)
    share_of_masses = {"all": SHARE / 2, "masses": SHARE, "specks": 0.0}[kind]
    is_mass, is_specks = which < share_of_masses, (which >= share_of_masses) & (which < SHARE)
    centres, side = _centre(x, at), x.shape[2]
    outline, blend, added = x.new_zeros(len(x), side, side), x.new_zeros(len(x)), x.new_zeros(len(x))
    mass = _mass(of_mass[is_mass], _offsets(centres[is_mass], side), largest_px, contrast)
    outline[is_mass], blend[is_mass], added[is_mass] = mass
    outline[is_specks], added[is_specks] = _specks(
        of_specks[is_specks], _offsets(centres[is_specks], side), side, contrast
    )
    faded, brighter = (value[:, None, None] * outline for value in (blend, added))
    drawn = x + (faded * (foreign - x).transpose(0, 1) + brighter).transpose(0, 1)
    return drawn.clamp(0, 1), (outline > 0.5).to(x)


def _between(u: Tensor, low: float, high: float) -> Tensor:
    """A uniform number as one between two, uniform in its logarithm."""
    return low * (high / low) ** u


def _centre(x: Patches, u: Uniform) -> Float[Tensor, "n 2"]:
    """Row and column of a lesion's centre, px: in no background, which is 0 (rayad/imaging/mammogram.py)."""
    places = (u.unflatten(1, (CENTRES, 2)) * x.shape[2]).long().clamp(max=x.shape[2] - 1)  # n k 2
    values = x.mean(1)[torch.arange(len(x), device=x.device)[:, None], places[..., 0], places[..., 1]]
    inside = values > 0
    inside[:, -1] = True
    first = inside.int().argmax(1)
    return places[torch.arange(len(x), device=x.device), first].to(x) + 0.5


def _offsets(centre: Float[Tensor, "n 2"], side: int) -> tuple[Map, Map]:
    """Rows and columns of all pixels from a centre, px."""
    pixel = torch.arange(side).to(centre) + 0.5
    rows, columns = (pixel - centre[:, i : i + 1] for i in range(2))
    return rows[:, :, None].expand(-1, -1, side), columns[:, None].expand(-1, side, -1)


def _mass(
    u: Uniform, offsets: tuple[Map, Map], largest_px: float, contrast: tuple[float, float]
) -> tuple[Map, Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Outlines of masses, the shares of the other patch, and the brightness added."""
    size, breadth, turn, fading, has_spicules, is_mixed, mixture, is_brighter, brightness, otherwise = u[:, :10].T
    of_lobes, of_phases, of_spicules = u[:, 10:].split([LOBES, LOBES, 3 * SPICULES], 1)
    radius, aspect = _between(size, largest_px / 8, largest_px), _between(breadth, 0.6, 1.0)
    softness = _between(fading, 0.03, 0.5)
    rows, columns = offsets
    cos, sin = (math.pi * turn).cos()[:, None, None], (math.pi * turn).sin()[:, None, None]
    along, across = rows * cos + columns * sin, (columns * cos - rows * sin) / aspect[:, None, None]
    angle, distance = torch.atan2(across, along), (along.square() + across.square()).sqrt()
    wobble = torch.ones_like(angle)
    for k in range(LOBES):
        height, phase = 0.4 * of_lobes[:, k, None, None] / (k + 2), 2 * math.pi * of_phases[:, k, None, None]
        wobble += height * ((k + 2) * angle + phase).cos()
    relative = distance / (radius[:, None, None] * wobble)
    outline = ((1 - relative) / softness[:, None, None]).sigmoid() / (1 / softness).sigmoid()[:, None, None]
    spiculated = has_spicules < 0.4
    spicules = _spicules(*(value[spiculated] for value in (of_spicules, angle, distance, radius)))
    outline[spiculated] = torch.maximum(outline[spiculated], spicules)
    added = torch.where(is_brighter < 0.8, _between(brightness, *contrast), 0)
    blend = torch.where(is_mixed < 0.5, mixture, 0)
    return outline, torch.where(added > 0, blend, torch.maximum(blend, otherwise.sqrt())), added


def _spicules(u: Uniform, angle: Map, distance: Map, radius: Float[Tensor, " n"]) -> Map:
    """Lines from the centre to one and a half to three radii, fading towards their ends."""
    outline = torch.zeros_like(angle)
    for k in range(SPICULES):
        direction, length, width = (u[:, k + i * SPICULES, None, None] for i in range(3))
        off = torch.remainder(angle - 2 * math.pi * direction + math.pi, 2 * math.pi) - math.pi
        reach = radius[:, None, None] * (1.5 + 1.5 * length)
        line = torch.exp(-((off * distance / (0.7 + 0.8 * width)) ** 2)) * (1 - distance / reach).clamp(min=0).sqrt()
        outline = torch.maximum(outline, torch.where(off.abs() < math.pi / 2, line, 0))
    return outline


def _specks(
    u: Uniform, offsets: tuple[Map, Map], side: int, contrast: tuple[float, float]
) -> tuple[Map, Float[Tensor, " n"]]:
    """Outlines of clusters of specks, and the brightness added."""
    extent, count, brightness = u[:, :3].T
    spread, number = _between(extent, side / 32, 0.4 * side)[:, None, None], (3 + (SPECKS - 3) * count)[:, None, None]
    rows, columns = offsets
    outline = torch.zeros_like(rows)
    for k in range(SPECKS):
        down, across, size, strength = (u[:, 3 + k + i * SPECKS, None, None] for i in range(4))
        squares = (rows - spread * (2 * down - 1)).square() + (columns - spread * (2 * across - 1)).square()
        speck = torch.exp(-squares / (2 * (0.5 + 0.7 * size).square())) * (0.6 + 0.4 * strength)
        outline = torch.maximum(outline, torch.where(k < number, speck, 0))
    return outline, _between(brightness, *contrast)
