"""The space of a sweep: which fields of which configurations are searched, and the values that they may take.

A field is written NAME=VALUES: `depth=1,2,3` are choices, `inputs=5..60` all numbers between (whole ones where the
field holds whole numbers), `step=0.01..0.5:log` the same on a logarithmic scale. A name that several configurations
have is written with its configuration: `em.seed`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from rayad import catalog, options
from rayad.errors import OptionError

Parts = Mapping[str, Any]
"""Name of a configuration (density, em, model, schedule) -> the frozen dataclass."""


@dataclass(frozen=True)
class Dimension:
    """A field that is searched."""

    part: str
    """The configuration that has it."""
    field: str
    values: tuple[Any, ...]
    """The choices, or the ends of a range."""
    span: bool = False
    """A range, not choices."""
    log: bool = False

    @property
    def distribution(self) -> BaseDistribution:
        """As Optuna takes it."""
        if not self.span:
            return CategoricalDistribution(self.values)
        low, high = self.values
        return (
            IntDistribution(low, high, log=self.log) if isinstance(low, int) else FloatDistribution(low, high, self.log)
        )

    def __str__(self) -> str:
        if self.span:
            return "..".join(f"{end:g}" for end in self.values) + ":log" * self.log
        return ",".join(map(str, self.values))

    def __contains__(self, value: Any) -> bool:
        if self.span:
            return self.values[0] <= value <= self.values[1]
        return value in self.values


Space = Mapping[str, Dimension]
"""Name of a field, as it was written -> what it may be."""


def parse(texts: Iterable[str], parts: Parts) -> dict[str, Dimension]:
    """The space that the texts say.

    Raises:
        OptionError: an unknown or ambiguous field, values that are not of its type, an empty space.
    """
    dimensions: dict[str, Dimension] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals:
            raise OptionError(f"a field of a search is NAME=VALUES, not {text!r}")
        if name in dimensions:
            raise OptionError(f"{name} is searched twice")
        part, field = _resolved(name, parts)
        dimensions[name] = _dimension(part, field, get_type_hints(type(parts[part]))[field], name, values)
    if not dimensions:
        raise OptionError(f"nothing to search: name fields, of {', '.join(_names(parts))}")
    return dimensions


def applied(parts: Parts, space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """The configurations with these values in them; OptionError where they refuse one."""
    changed = dict(parts)
    for part in parts:
        fields_of_part = {space[name].field: value for name, value in values.items() if space[name].part == part}
        changed[part] = replace(parts[part], **fields_of_part)
        options.check(changed[part], f"{part}.{{}}".format)
    return changed


def check(parts: Parts, space: Space, build: Callable[[Parts], object]) -> None:
    """OptionError for a value that cannot be built, whatever the others are: a search would meet it again and again."""
    for name, dimension in space.items():
        for value in dimension.values:
            try:
                build(applied(parts, space, {name: value}))
            except OptionError as error:
                raise OptionError(f"{name}={value} cannot be searched: {error}") from None


def base(parts: Parts, space: Space) -> dict[str, Any]:
    """The values that the fields have without a search."""
    return {name: getattr(parts[dimension.part], dimension.field) for name, dimension in space.items()}


def _names(parts: Parts) -> list[str]:
    return [f"{part}.{field.name}" for part, config in parts.items() for field in fields(config)]


def _resolved(name: str, parts: Parts) -> tuple[str, str]:
    """The configuration and the field that a name means."""
    part, _, field = name.rpartition(".")
    matches = [
        candidate
        for candidate in _names(parts)
        if candidate == name or (not part and candidate.partition(".")[2] == field)
    ]
    if not matches:
        raise OptionError(f"no field {name!r} to search; there are {', '.join(_names(parts))}")
    if len(matches) > 1:
        raise OptionError(f"{name!r} is a field of several: write {' or '.join(matches)}")
    part, _, field = matches[0].partition(".")
    return part, field


def _dimension(part: str, field: str, kind: Any, name: str, text: str) -> Dimension:
    span, _, scale = text.partition(":")
    low, dots, high = span.partition("..")
    if not dots:
        return Dimension(part, field, tuple(catalog.parsed(name, field, kind, value) for value in text.split(",")))
    if kind not in (int, float) or scale not in ("", "log"):
        raise OptionError(
            f"{name} is choices with commas between, or of numbers LOW..HIGH or LOW..HIGH:log, not {text!r}"
        )
    ends = tuple(catalog.parsed(name, field, kind, end) for end in (low, high))
    if not ends[0] < ends[1] or (scale and ends[0] <= 0):
        raise OptionError(f"{name}: a range rises, on a logarithmic scale from above 0; {text!r} does not")
    return Dimension(part, field, ends, span=True, log=bool(scale))
