"""Numbers that an option can have: finite, and in the range that stands beside the option.

A range is part of the field's type, ``step_mm: Millimetres = 3.2``; `check` reads it there.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

from rayad.errors import OptionError

LARGEST = 2**63 - 1
"""Whole numbers of 64 bits end here."""


@dataclass(frozen=True)
class Within:
    """A range with both its ends."""

    least: float
    most: float

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most


Count = Annotated[int, Within(1, 1_000_000_000)]
"""Of what there must be one of."""
Amount = Annotated[int, Within(0, 1_000_000_000)]
"""Of what there may be none of."""
Seed = Annotated[int, Within(0, LARGEST)]
Share = Annotated[float, Within(0, 1)]
Millimetres = Annotated[float, Within(0.001, 1000)]
Spacing = Annotated[float, Within(0.001, 100)]
"""mm a pixel."""
SpacingOrNone = Annotated[float, Within(0, 100)]
"""mm a pixel, or 0 where there is none."""
Minutes = Annotated[float, Within(0, 10_000_000)]
"""Up to 19 years."""


def check(options: Any, prefix: str = "", joint: str = ".") -> None:
    """Every number of a dataclass, and of those in it, is finite and in the range of its field.

    Args:
        prefix: what stands before a field's name in an error, such as "--".
        joint: between the name of a dataclass in it and that of its field.

    Raises:
        OptionError: one is not; names the option, its range and what came.
    """
    for name, value, range_ in _numbers(options, joint):
        if value not in range_:
            raise OptionError(f"{prefix}{name} must be {_said(range_)}, not {value}")


def _numbers(options: Any, joint: str) -> Iterator[tuple[str, float, Within]]:
    """Name, value and range of every number."""
    hints = get_type_hints(type(options), include_extras=True)
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            inner = _numbers(value, joint)
            yield from ((f"{field.name}{joint}{name}", number, range_) for name, number, range_ in inner)
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield field.name, number, _range(hints[field.name], number)


def _range(hint: Any, number: float) -> Within:
    """The range in a field's type; where there is none, all numbers of its kind."""
    given = [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Within)]
    if given:
        return given[0]
    return Within(-LARGEST, LARGEST) if isinstance(number, int) else FINITE


FINITE = Within(-math.nextafter(math.inf, 0), math.nextafter(math.inf, 0))


def _said(range_: Within) -> str:
    return "a finite number" if range_ == FINITE else f"between {range_.least:,} and {range_.most:,}"
