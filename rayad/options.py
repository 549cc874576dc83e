"""What an option can have: settings, names, and numbers that are finite and in the range that stands beside the option.

A range is part of the field's type, ``step_mm: Millimetres = 3.2``; `check` reads it there.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import tyro

from rayad.errors import OptionError

Settings = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")]
"""Fields of a plug-in."""
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")]

LARGEST = 2**63 - 1
"""Whole numbers of 64 bits end here."""


@dataclass(frozen=True)
class Within:
    """A range with both its ends."""

    least: float
    most: float
    or_zero: bool = False
    """0 is good too, for "nothing says it"."""
    multiple: int = 1
    """What whole numbers are a multiple of."""

    def __contains__(self, value: float) -> bool:
        fits = self.multiple == 1 or value % self.multiple == 0
        return (self.least <= value <= self.most and fits) or (self.or_zero and value == 0)

    def __str__(self) -> str:
        if self == FINITE:
            return "a finite number"
        multiple = f"a multiple of {self.multiple} " if self.multiple > 1 else ""
        return f"{multiple}between {self.least:,.12g} and {self.most:,.12g}" + (", or 0" if self.or_zero else "")


Count = Annotated[int, Within(1, 1_000_000_000)]
"""Number of things of which there must be at least one."""
Amount = Annotated[int, Within(0, 1_000_000_000)]
"""Number of things of which there may be none."""
Folds = Annotated[int, Within(0, 100)]
"""Parts into which patients are divided; 0: they are not."""
Size = Annotated[int, Within(1, 65_536)]
"""Size of a layer, a level or a vector, which is held in memory."""
PATCH_SIDES = Within(32, 256, multiple=8)
"""Sides of a patch, px: those that an encoder halves and a decoder doubles back (rayad/models/_blocks.py)."""
PatchSide = Annotated[int, PATCH_SIDES]
PatchSideOrNone = Annotated[int, Within(32, 256, or_zero=True, multiple=8)]
"""A side of patches, or 0 where it follows from something else."""
Channels = Annotated[int, Within(1, 3)]
"""Channels of an image: 1 for grey, 3 for colour."""
Seed = Annotated[int, Within(0, LARGEST)]
Share = Annotated[float, Within(0, 1)]
Rate = Annotated[float, Within(0, 1000)]
"""Learning rate of an optimizer."""
Weight = Annotated[float, Within(0, 1e12)]
"""Weight of one thing against another."""
Spacing = Annotated[float, Within(0.01, 100)]
"""mm a pixel."""
SpacingOrNone = Annotated[float, Within(0.01, 100, or_zero=True)]
"""mm a pixel, or 0 where nothing says it."""
Millimetres = Annotated[float, Within(0.01, 1000)]
"""A distance of places."""
MillimetresOrNone = Annotated[float, Within(0.01, 1000, or_zero=True)]
"""A distance of places, or 0 where it follows from something else."""
Minutes = Annotated[float, Within(0, 10_000_000)]
"""Up to 19 years."""
Seconds = Annotated[float, Within(0, 1_000_000_000)]
"""Up to 31 years."""
GPUs = Annotated[float, Within(0, 64)]
"""GPUs of a process; less than 1 where several processes share one."""
Port = Annotated[int, Within(0, 65_535)]


def check(options: Any, called: Callable[[str], str] = str) -> None:
    """Every number of a dataclass, and of those in it, is finite and in the range of its field.

    Args:
        called: what an error calls a field, by its name; that of one in a dataclass in it is workers.cpus.

    Raises:
        OptionError: one is not; names the option, its range and what came.
    """
    for name, value, range_ in _numbers(options):
        if value not in range_:
            raise OptionError(f"{called(name)} must be {range_}, not {value}")


def _numbers(options: Any) -> Iterator[tuple[str, float, Within]]:
    """Name, value and range of every number."""
    hints = get_type_hints(type(options), include_extras=True)
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            yield from ((f"{field.name}.{name}", number, range_) for name, number, range_ in _numbers(value))
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield field.name, number, _range(hints[field.name], number)


def _range(hint: Any, number: float) -> Within:
    """The range in a field's type; where there is none, all numbers of its kind."""
    ranges = [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Within)]
    if ranges:
        return ranges[0]
    return Within(-LARGEST, LARGEST) if isinstance(number, int) else FINITE


FINITE = Within(-math.nextafter(math.inf, 0), math.nextafter(math.inf, 0))
