"""Residual operators of a patch and its reconstruction."""

from collections.abc import Callable

from rayad.arrays import Patches, Scores


def squared(x: Patches, reconstruction: Patches) -> Scores:
    """Mean of the squared differences."""
    return (x - reconstruction).square().flatten(1).mean(1)


OPERATORS: dict[str, Callable[[Patches, Patches], Scores]] = {"squared": squared}
"""Name of the operator -> function."""
