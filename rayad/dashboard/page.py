"""The page of `rayad dashboard`: runs, sweeps, corpora and faults at a glance. It has no script and loads nothing."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources

from jinja2 import Environment, StrictUndefined

from rayad.dashboard.overview import Overview

SHOWN = 40
"""Faults that are shown; the files that they lead to have all."""


@dataclass(frozen=True)
class Line:
    """A tool: where it is open, or what is missing for it."""

    tool: str
    said: str
    address: str = ""


def render(overview: Overview, roots: Sequence[str], lines: Sequence[Line], nonce: str, problem: str = "") -> str:
    """The page.

    Args:
        lines: what else can be opened.
        nonce: that the page's style bears, as its Content-Security-Policy says.
        problem: why the overview is not of now.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    now = datetime.now(UTC)
    environment.globals |= {"at": address, "SHOWN": SHOWN}
    environment.filters |= {"moment": moment, "ago": lambda when: ago(when, now), "setting": setting}
    template = resources.files("rayad.dashboard").joinpath("page.html.j2").read_text("utf-8")
    return environment.from_string(template).render(
        overview=overview, roots=roots, lines=lines, nonce=nonce, problem=problem, now=now
    )


def address(url: str) -> str:
    """Where the page's server has a file that the page leads to."""
    folder, name = url.rsplit("/", 1)
    return f"/at/{key(folder)}/{name}"


def key(folder: str) -> str:
    """A folder's name in addresses, which tells nothing of where it lies."""
    return hashlib.sha256(folder.encode()).hexdigest()[:16]


def moment(when: datetime | str) -> str:
    """Such as 2026-11-26 05:04, UTC; what is no time stays as it is."""
    parsed = _parsed(when)
    return parsed.strftime("%Y-%m-%d %H:%M") if parsed else str(when)


def ago(when: datetime | str, now: datetime) -> str:
    """Such as "3 h ago"; "" where it is no time."""
    parsed = _parsed(when)
    if parsed is None:
        return ""
    seconds = max(0.0, (now - parsed).total_seconds())
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (size < 86400 and seconds >= size):
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"


def setting(value: object) -> str:
    """A setting of a sweep: numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _parsed(when: datetime | str) -> datetime | None:
    try:
        parsed = datetime.fromisoformat(when) if isinstance(when, str) else when
        return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
