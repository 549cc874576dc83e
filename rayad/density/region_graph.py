"""Random region graphs: how a circuit splits its variables (Peharz et al. 2020a).

For each of R replicas the M variables are permuted and split into two balanced halves, D times over: 2^D leaf
regions a replica. Regions of a level stand in one row, *all left halves before all right halves*, so

    region q of a level with Q regions  =  region q  and  region q + Q  of the next level,

and a product layer takes its children by cutting the next level in two. Only the scopes of the leaf regions
need to be stored: a region above holds what its halves hold.
"""

from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

from rayad.errors import OptionError

MOST_PLACES = 1 << 22
"""Variables times replicas of a region graph, at most: 34 MB of scopes."""
MOST_REGIONS = 1 << 18
"""Leaf regions of all replicas, at most."""
Scopes = Int64[Tensor, "l w"]
"""The variables of each leaf region; places that a smaller region does not fill hold the number of variables."""


def random_scopes(variables: int, depth: int, replicas: int, seed: int, first: int = 0) -> Scopes:
    """Draw a region graph and return the scopes of its replicas * 2**depth leaf regions.

    Args:
        first: how many of the variables, the first ones, the first cut parts from the others; 0: it cuts at random.

    Raises:
        OptionError: fewer variables than the 2**depth leaf regions of a replica, or a size out of range.
    """
    if variables < 1:
        raise OptionError(f"a density needs at least 1 variable, not {variables}")
    if replicas < 1:
        raise OptionError(f"replicas must be at least 1, not {replicas}")
    if not 0 <= depth <= variables.bit_length() - 1:
        raise OptionError(
            f"depth {depth} splits {variables} variables into 2**{depth} regions;"
            f" it must be between 0 and {variables.bit_length() - 1}"
        )
    if variables * replicas > MOST_PLACES or replicas * 2**depth > MOST_REGIONS:
        raise OptionError(
            f"{replicas} replicas of {variables} variables in {2**depth} regions are too large a graph: at most"
            f" {MOST_PLACES} variables and {MOST_REGIONS} regions in all replicas"
        )
    if first and not (depth and 2 ** (depth - 1) <= min(first, variables - first)):
        raise OptionError(
            f"a first cut behind {first} of {variables} variables leaves a side with fewer than the 2**{depth - 1} "
            f"regions that depth {depth} makes of each; depth must be at least 1"
        )
    generator = np.random.default_rng(seed)
    level = [generator.permutation(first) for _ in range(replicas) if first]
    level += [first + generator.permutation(variables - first) for _ in range(replicas)]
    for _ in range(depth - bool(first)):
        halves = [np.array_split(region, 2) for region in level]
        level = [left for left, _ in halves] + [right for _, right in halves]
    scopes = np.full((len(level), max(map(len, level))), variables)
    for row, region in zip(scopes, level, strict=True):
        row[: len(region)] = region
    return torch.from_numpy(scopes)


def refuse_strange_scopes(leaves: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """A hook before loading: the scopes that come must be of the variables that the leaves were built for.

    The compiled kernel follows them without looking.

    Raises:
        OptionError: they are not.
    """
    scopes, variables = state.get(f"{prefix}scopes"), cast(int, leaves.variables)
    if scopes is not None and not scopes.is_meta and not ((scopes >= 0) & (scopes <= variables)).all():
        raise OptionError(f"{prefix}scopes must be numbers of variables, 0 to {variables}")


def spread(scopes: Scopes, table: Shaped[Tensor, "n m"]) -> Shaped[Tensor, "l w n"]:
    """The rows' values at the places of every region; 0 in unfilled places."""
    return torch.cat([table, table.new_zeros(len(table), 1)], dim=1).T[scopes]
