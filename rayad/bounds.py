"""What one image may take: bytes, pixels, places, memory, time. Every door asks here, whatever it is: a command, a job,
a batch, the service.

A command takes them as options (`--bounds.pixels`) and its workers find them in their environment. What does not stop
by itself asks `go_on` between two batches, whether anybody still waits for it and its time is not over.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace

from rayad.errors import ImageError, OptionError
from rayad.options import Count, Seconds

VARIABLE = "RAYAD_BOUNDS"
"""Of the environment, in JSON."""


@dataclass(frozen=True)
class Bounds:
    """What one image may take; above it the image is refused, before the work begins where that can be known."""

    file_mb: Count = 200
    """Size of an image's file, 10^6 bytes."""
    pixels: Count = 40_000_000
    """Pixels of an image as it is stored, and again at the resolution at which it is scored; the largest mammograms of
    real archives have 29,000,000."""
    places: Count = 50_000
    """Places of an image that are scored; 3.2 mm apart the largest mammogram has 7,000."""
    memory_mb: Count = 1_500
    """Memory that decoding may take besides the file, 10^6 bytes."""
    decode_seconds: Seconds = 60.0
    """Seconds that decoding an image may take."""
    score_seconds: Seconds = 600.0
    """Seconds that scoring an image may take."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise OptionError(f"bounds.{name} must be above 0, not {value}")

    def or_else(self, others: "Bounds") -> "Bounds":
        """With those of others in place of what nobody changed."""
        usual = asdict(Bounds())
        changed = {name: value for name, value in asdict(self).items() if value != usual[name]}
        return replace(others, **changed)

    def require_pixels(self, rows: int, columns: int, name: str, how: str = "") -> None:
        """ImageError if an image would have more pixels than it may; `how` it comes to have them."""
        if rows * columns > self.pixels:
            raise ImageError(f"{name}: {rows} x {columns} pixels{how} are more than bounds.pixels={self.pixels}")

    def require_places(self, places: int) -> None:
        """ImageError if more places would be scored than may."""
        if places > self.places:
            raise ImageError(f"{places} places of the tissue are more than bounds.places={self.places}; raise step_mm")

    def require_bytes(self, size: int, name: str) -> None:
        """ImageError if a file is larger than it may be."""
        if size > self.file_mb * 1_000_000:
            raise ImageError(f"{name}: {size / 1e6:.4g} MB are more than bounds.file_mb={self.file_mb}")


def current() -> Bounds:
    """Those of this process."""
    return _of(os.environ.get(VARIABLE, ""))


def use(bounds: Bounds) -> None:
    """Make them those of this process and of all that it starts."""
    os.environ[VARIABLE] = json.dumps(asdict(bounds))


class NotWanted(Exception):  # noqa: N818, it is no error
    """Nobody waits for the work any more."""


@contextmanager
def while_wanted(check: Callable[[], None]) -> Iterator[None]:
    """Let `go_on` call this, which raises where nobody waits for the work inside any more."""
    before = _check.set(check)
    try:
        yield
    finally:
        _check.reset(before)


@contextmanager
def within(seconds: float, name: str) -> Iterator[None]:
    """Let `go_on` raise an ImageError when so much time has passed; `name` is the bound's."""
    until, outer_check = time.monotonic() + seconds, _check.get()

    def check() -> None:
        outer_check()
        if time.monotonic() > until:
            raise ImageError(f"it took longer than bounds.{name}={seconds:g} s")

    with while_wanted(check):
        yield


def go_on() -> None:
    """Raise where the work that calls this is to end: its time is over, or nobody waits for it."""
    _check.get()()


def _of(text: str) -> Bounds:
    try:
        return Bounds(**json.loads(text)) if text else Bounds()
    except (ValueError, TypeError) as error:
        raise OptionError(f"{VARIABLE} is not the bounds of an image in JSON: {error}") from error


def _always() -> None:
    """Nothing ends it."""


_check: ContextVar[Callable[[], None]] = ContextVar("check", default=_always)
